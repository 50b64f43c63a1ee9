import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "projects" / "OneNet"))

from onenet.config.shipped import FOLDERS, SHIPPED  # noqa: E402  imports the standard library alone

README = ROOT / "README.md"
EXPORT = ["onnx", "onnxruntime", "onnxscript"]


class BuildWithConfigs(build_py):
    """Copies the configs into the package, where onenet.config.shipped finds them by name."""

    def run(self):
        super().run()
        if self.editable_mode:  # they are in the repository
            return
        for folder in FOLDERS:
            target = Path(self.build_lib, "onenet", SHIPPED, folder)
            shutil.copytree(ROOT / folder, target, dirs_exist_ok=True)


setup(
    name="onenet",
    version="0.1.0",
    description="OneNet: end-to-end object detection without NMS, by classification cost",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The OneNet Authors",
    license="Apache-2.0",
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["onenet = onenet.api.console:main"]},
    package_dir={"": "projects/OneNet"},
    packages=find_packages("projects/OneNet", include=["onenet", "onenet.*"]),
    package_data={"onenet": ["visualization/*.html"]},
    python_requires=">=3.10",
    # Detectron2 is optional and not listed: it has to be compiled against the torch in use.
    install_requires=[
        "faster-coco-eval",
        "fvcore",
        "Jinja2",  # which torch needs, too
        "lightning>=2.4",
        "matplotlib",
        "numpy",
        "opencv-python",
        "Pillow",
        "pycocotools",
        "PyYAML",
        "safetensors",
        "scipy",
        "supervision",
        "tabulate",
        "tensorboard",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm",
        "yacs",
    ],
    extras_require={
        "export": EXPORT,
        "page": ["gradio>=6"],
        "mlflow": ["mlflow"],
        "wandb": ["wandb"],
        "timm": ["timm>=1.0"],
        "transformers": ["transformers>=5.0"],
        "test": [
            *EXPORT,
            "hypothesis",
            "pytest",
            "pytest-xdist",
            "ruff",
            "timm>=1.0",
            "transformers>=5.0",
        ],
    },
)
