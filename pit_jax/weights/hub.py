"""Weights from the Hugging Face hub, through its own client and cache."""

from pathlib import Path

PREFIX = "hf:"

# In order of preference: the first needs no torch to read.
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


def download(identifier: str) -> tuple[Path, str]:
    """Fetches the weight file of a model on the hub, or takes it from the client's cache.

    Args:
      identifier: "owner/name" or "owner/name@revision". Where it is looked for, and with which
        token, is the client's business: `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`.

    Returns:
      The local file, and "hf:owner/name@commit", which names its content for good.

    Raises:
      ValueError: no such repository, revision or weight file, or no way to reach the hub.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = identifier.partition("@")
    named = f"{PREFIX}{identifier}"
    for file_name in FILE_NAMES:
        try:
            path = Path(
                huggingface_hub.hf_hub_download(repository, file_name, revision=revision or None)
            )
        except errors.LocalEntryNotFoundError as error:
            raise ValueError(
                f"{named}: the hub cannot be reached and {file_name} is not in the local cache; "
                "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
            ) from error
        except errors.EntryNotFoundError:
            continue
        except errors.GatedRepoError as error:
            raise ValueError(
                f"{named}: access is restricted; accept its terms on the hub and set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ValueError(
                f"{named}: the hub has no repository {repository!r}, or it is private and HF_TOKEN "
                "does not open it"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ValueError(f"{named}: {repository} has no revision {revision!r}") from error
        except errors.HFValidationError as error:
            raise ValueError(
                f"{named}: expected hf:owner/name or hf:owner/name@revision"
            ) from error
        except Exception as error:  # the client's HTTP library is another in every version
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{named}: the download failed: {reason}") from error
        # The client's cache keeps files under snapshots/COMMIT/.
        return path, f"{PREFIX}{repository}@{path.parent.name}"
    raise ValueError(f"{named}: found none of {', '.join(FILE_NAMES)} in the repository")
