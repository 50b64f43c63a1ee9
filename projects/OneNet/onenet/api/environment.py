"""What a bug report needs to know of the machine: versions, engines, processor, GPUs, memory.

    onenet env

prints it, whatever is missing or broken. It prints no secrets: of the environment variables only
those listed here, addresses without user and password, and the home folder as ``~``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onenet
from onenet.checkpoints.download import cache_folder
from onenet.cli import detectron2_trouble, run_program
from onenet.config import machine
from onenet.data.shared_memory import shared_memory

PACKAGES = (
    "torch torchvision lightning detectron2 fvcore numpy scipy Pillow opencv-python "
    "opencv-python-headless pycocotools faster-coco-eval supervision safetensors yacs PyYAML tqdm "
    "tabulate matplotlib tensorboard setuptools onnx onnxscript onnxruntime onnxruntime-gpu "
    "tensorrt triton timm transformers gradio wandb mlflow pytest"
).split()
# What makes arithmetic fast, and the word for it in Linux's /proc/cpuinfo.
X86 = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX512-BF16": "avx512_bf16",
    "AVX512-VNNI": "avx512_vnni",
    "AVX-VNNI": "avx_vnni",
    "AMX-BF16": "amx_bf16",
    "AMX-INT8": "amx_int8",
}
ARM = {"NEON": "asimd", "bf16": "bf16", "dot product": "asimddp", "i8mm": "i8mm", "SVE": "sve"}
VARIABLES = (
    "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS KMP_AFFINITY KMP_BLOCKTIME "
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_LAUNCH_BLOCKING CUBLAS_WORKSPACE_CONFIG "
    "NVIDIA_TF32_OVERRIDE NCCL_DEBUG NCCL_SOCKET_IFNAME NCCL_P2P_DISABLE PYTORCH_CUDA_ALLOC_CONF "
    "PYTORCH_ALLOC_CONF PYTORCH_ENABLE_MPS_FALLBACK TORCH_HOME XDG_CACHE_HOME FVCORE_CACHE "
    "TORCHINDUCTOR_CACHE_DIR MPLBACKEND MPLCONFIGDIR DETECTRON2_DATASETS ONENET_IMAGE_LINKS "
    "ONENET_GOLDEN RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_JOB_ID SLURM_NTASKS "
    "SLURM_PROCID http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY SSL_CERT_FILE "
    "DISPLAY WAYLAND_DISPLAY LANG LC_ALL TMPDIR PYTHONPATH PYTHONHASHSEED LD_PRELOAD "
    "LD_LIBRARY_PATH VIRTUAL_ENV CONDA_PREFIX"
).split()
_WIDTH = 2 + max(map(len, (*PACKAGES, *VARIABLES)))
_USER = re.compile(r"(?<=://)[^/@\s]*@")
Facts = Iterator[tuple[str, object]]  # a name and its value, a line each


def describe() -> Iterator[str]:
    """The report, line by line; a part that fails says so, and the others go on."""
    for title, facts in SECTIONS.items():
        yield title
        try:
            for name, value in facts():
                yield f"  {name:<{_WIDTH}}{_public(str(value))}"
        except Exception as error:  # a broken package raises what it likes
            yield f"  failed: {_public(_words(error))}"


def _public(text: str) -> str:
    text = _USER.sub("", " ".join(text.split()))
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _software() -> Facts:
    here = Path(__file__).resolve().parents[1]
    yield "onenet", f"{onenet.__version__}{_commit(here)} in {here}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "started by", sys.executable
    yield "system", platform.platform()


def _commit(here: Path) -> str:
    """The commit of a checkout; "" where the package is installed without one."""
    root = str(here.parents[2])
    if not os.path.exists(os.path.join(root, ".git")):
        return ""
    commit = _output("git", "-C", root, "rev-parse", "--short", "HEAD")
    changed = ", with changes" if _output("git", "-C", root, "status", "--porcelain") else ""
    return f" (commit {commit}{changed})" if commit else ""


def _output(*command: str) -> str:
    """What a program prints; "" if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _packages() -> Facts:
    found = machine.versions(PACKAGES)
    yield from found.items()
    yield "not installed", ", ".join(name for name in PACKAGES if name not in found) or "none"


def _engines() -> Facts:
    """Whether each engine can be imported; a package that is needed is listed with its error."""
    embedded = _trouble(lambda: importlib.import_module("onenet.lightning.main"))
    yield "lightning", embedded or "can be used"
    other = _trouble(detectron2_trouble)
    yield "detectron2", other or "can be used"
    chosen = "detectron2" if not other else "lightning" if not embedded else "none"
    yield "auto takes", chosen
    yield "onnxruntime", _trouble(_providers)


def _trouble(check: Callable[[], Any]) -> str:
    """What a check says, or the error that it raises; "" for what is not text."""
    try:
        said = check()
    except Exception as error:
        return f"cannot be used: {_words(error)}"
    return said if isinstance(said, str) else ""


def _providers() -> str:
    runtime = importlib.import_module("onnxruntime")
    return f"can be used, with {', '.join(runtime.get_available_providers())}"


def _processor() -> Facts:
    yield "name", machine.cpu_name() or "unknown"
    limit = machine.core_limit()
    granted = f"; the container allows {limit:g}" if limit is not None else ""
    yield "cores", f"{machine.usable_cores()} of {os.cpu_count()} may be used{granted}"
    flags = machine.cpu_flags()
    if flags is None:
        yield "has", "unknown: this system does not list it"
    else:
        names = ARM if "asimd" in flags or "fp" in flags else X86
        yield "has", ", ".join(name for name, flag in names.items() if flag in flags) or "none"
        yield "lacks", ", ".join(name for name, f in names.items() if f not in flags) or "nothing"
    torch = importlib.import_module("torch")
    uses = torch.backends.cpu.get_cpu_capability()
    yield "torch uses", f"{uses}, with {torch.get_num_threads()} threads"


def _memory() -> Facts:
    size, limit = machine.memory(), machine.memory_limit()
    granted = f"; the container allows {_gib(limit)}" if limit is not None else ""
    yield "memory", f"{_gib(size) if size is not None else 'unknown'}{granted}"
    yield "shared memory", shared_memory()


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _gpus() -> Facts:
    query = "--query-gpu=index,name,driver_version,memory.total"
    cards = _output("nvidia-smi", query, "--format=csv,noheader")
    yield "nvidia-smi", "; ".join(cards.splitlines()) or "finds no GPU, or is not there"
    torch = importlib.import_module("torch")
    yield "built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.cuda.is_available():
        yield "cuDNN", torch.backends.cudnn.version()
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            yield (
                f"cuda:{number}",
                f"{card.name}, {_gib(card.total_memory)}, compute {card.major}.{card.minor}",
            )
    else:
        yield "CUDA", "torch finds none"
    yield "MPS", "there" if torch.backends.mps.is_available() else "none"


def _folders() -> Facts:
    yield "torch", _folder(cache_folder())
    yield "matplotlib", _trouble(lambda: _folder(_matplotlib_folder()))
    yield "temporary", _folder(Path(tempfile.gettempdir()))
    yield "data sets", _folder(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def _matplotlib_folder() -> Path:
    return Path(importlib.import_module("matplotlib").get_cachedir())


def _folder(path: Path) -> str:
    if not path.is_dir():
        return f"{path}, not there"
    writable = "" if os.access(path, os.W_OK) else ", cannot be written"
    return f"{path}, {_gib(shutil.disk_usage(path).free)} free{writable}"


def _variables() -> Facts:
    found = [name for name in VARIABLES if name in os.environ]
    yield from ((name, os.environ[name]) for name in found)
    if not found:
        yield "none", "of those that matter is set"


# The last ones run the code of packages, which may end the process if they are broken.
SECTIONS: dict[str, Callable[[], Facts]] = {
    "OneNet": _software,
    "Packages": _packages,
    "Memory": _memory,
    "Environment variables": _variables,
    "Folders": _folders,
    "Processor": _processor,
    "GPUs": _gpus,
    "Engines": _engines,
}


def run(args: argparse.Namespace) -> None:
    for line in describe():
        print(line, flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="onenet env",
        description="Print what a bug report needs: versions, engines, processor, GPUs, memory, "
        "folders. No secrets are printed.",
    )
    run_program(parser, run, argv)


if __name__ == "__main__":
    main()
