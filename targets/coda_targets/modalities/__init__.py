"""From text, images or audio to arrays, and from outputs to answers."""
