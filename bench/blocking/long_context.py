"""The same model with a longer context, for measurements that never look at its answers."""

import json
from pathlib import Path

from bench.errors import UsageError
from sglang_flowprefill.cache import cache_folder

_CONFIG = "config.json"
_CONTEXT = "max_position_embeddings"


def model_with_context(model_path: Path, num_tokens: int) -> Path:
    """Return a model folder that takes prompts of this length.

    It is the model itself where its context suffices. Otherwise it is a folder in the cache with
    links to the model's files and a configuration that claims more positions than the model was
    trained for: every operator does the work that it would do in a model with that context, and
    what comes out beyond the trained length means nothing.

    Args:
        model_path: Folder of the model.
        num_tokens: Prompt and output.

    Raises:
        UsageError: It is no folder with a configuration that names its context.
    """
    try:
        config = json.loads((model_path / _CONFIG).read_text(encoding="utf-8"))
        context = int(config[_CONTEXT])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{model_path}: no {_CONFIG} that names {_CONTEXT}, so its context for prompts of "
            f"{num_tokens} tokens cannot be checked or raised; give --model-path a folder"
        ) from error
    if num_tokens <= context:
        return model_path
    folder = cache_folder() / "bench" / f"{model_path.name}-context-{num_tokens}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in model_path.iterdir():
        link = folder / file.name
        link.unlink(missing_ok=True)
        if file.name != _CONFIG:
            link.symlink_to(file.resolve())
    (folder / _CONFIG).write_text(json.dumps(config | {_CONTEXT: num_tokens}), encoding="utf-8")
    return folder
