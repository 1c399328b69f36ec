"""A model uploaded to the Hugging Face hub."""

from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from coda_models.checkpoint import save_pretrained
from coda_models.errors import CheckpointError
from coda_models.model import CodaModel
from coda_ops.errors import first_line


def push_to_hub(
    model: CodaModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a CoDA model",
) -> str:
    """Upload the folder that ``save_pretrained`` writes.

    Args:
        repo_id: ``NAME`` or ``OWNER/NAME``; made where there is none.
        private: whether it is then; by default as its owner's are.
        token: by default the one that ``hf auth login`` keeps.
        revision: the branch, by default main.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the hub is out of reach or refuses it.
    """
    api = HfApi(token=token)
    with TemporaryDirectory(prefix="coda-hub-") as folder:
        save_pretrained(model, folder, tokenizer=tokenizer)
        try:
            found = api.create_repo(repo_id, private=private, exist_ok=True)
            made = api.upload_folder(
                repo_id=found.repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        except Exception as error:  # huggingface_hub's and its HTTP library's own
            raise CheckpointError(f"{repo_id} cannot be written to the hub: {first_line(error)}") from error
    return str(made.commit_url)
