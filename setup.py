"""Installs capjax: `pip install .`, or `pip install -e '.[dev]'` to work on it."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "capjax" / "__init__.py").read_text()).group(1)

setup(
    name="capjax",
    version=VERSION,
    description="CNN-to-RNN image captioning in JAX: train, evaluate, caption",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["capjax", "capjax.*"]), "capjax.configs"],
    package_dir={"capjax": "capjax", "capjax.configs": "configs"},
    package_data={
        "capjax": [
            "py.typed",
            "data/*.txt",
            "data/*.json",
            "pretrained/*.safetensors",
            "report/*.html",
            "report/*.css",
            "report/*.js",
            "serving/*.html",
            "serving/*.css",
            "serving/*.js",
        ]
    },
    install_requires=[
        "absl-py>=2.1",
        "jax>=0.9.2",  # older ones end a process that lost another as after an error, and launchers give up
        "flax>=0.11",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.22",
        "tensorflow-datasets>=4.9.10",
        "array_record>=0.8.1",
        "grain>=0.2.12",
        "numpy>=2.0",
        "ml-collections>=1.0",
        "jaxtyping>=0.3.3",
        "pillow>=11.3",
        "safetensors>=0.5",
        "h5py>=3.12.1",
        "ml_dtypes>=0.5",
        "requests>=2.32.2",
        "tqdm>=4.67",
        "matplotlib>=3.9",
        "tensorboardX>=2.6.2.2",
        "flatbuffers>=24.3.25",  # in which jax.export writes programs
        "snowballstemmer>=2.2,<3",  # whose English rules are those of METEOR
    ],
    extras_require={
        "gpu": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "heic": ["pillow-heif>=0.18"],
        "hub": ["huggingface_hub>=0.34"],
        "serve": [
            "starlette>=0.46",
            "uvicorn>=0.34",
            "python-multipart>=0.0.20",
            "prometheus_client>=0.21",
        ],
        "meteor": ["pycocoevalcap>=1.2"],  # the word lists and paraphrases of METEOR
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6.1",
            "hypothesis>=6.100",
            "pillow-heif>=0.18",
            "huggingface_hub>=0.34",
            "setuptools>=77.0.3",
            "psutil>=5.9",
            "pyyaml>=6",
            "beartype>=0.20",
            "keras>=3.8",
            "torch==2.13.0",
            "pycocoevalcap>=1.2",
            "ruff>=0.11",
            "starlette>=0.46",
            "uvicorn>=0.34",
            "python-multipart>=0.0.20",
            "prometheus_client>=0.21",
            "httpx>=0.28",
            "openapi-spec-validator>=0.7.1",
            "playwright>=1.49",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
        ],
    },
    entry_points={"console_scripts": ["capjax = capjax.cli:program"]},
)
