"""Routing a dense model without training: fitted routers, stand-ins and a mended readout, each in closed form."""
