from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
EXPORT = ["onnx", "onnxruntime", "onnxscript"]

setup(
    name="onenet",
    version="0.1.0",
    description="OneNet: end-to-end object detection without NMS, by classification cost",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The OneNet Authors",
    license="Apache-2.0",
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
        "test": [*EXPORT, "hypothesis", "pytest", "pytest-xdist", "ruff"],
    },
)
