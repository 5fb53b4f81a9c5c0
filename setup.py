"""The package's metadata; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

demo = ["espeakng-loader>=0.2.4", "matplotlib>=3.9"]
# Normalizers and metrics of benchmarks; openai asks a judge.
evaluation = [
    "kaldialign>=0.12",
    "openai>=1.60",
    "sacrebleu>=2.5",
    "whisper-normalizer>=0.1.12",
    "zhconv>=1.4.3",
]
gcs = ["gcsfs>=2024.6"]
serve = [
    "starlette>=0.46",
    "uvicorn>=0.34",
    "websockets>=14",
    "pydantic>=2.10",
    "prometheus-client>=0.21",
    "python-multipart>=0.0.20",
]
# transformers 5.10.0 to 5.10.3 tie this model's head by mistake and would be a wrong oracle.
parity = [
    *evaluation,
    "torch>=2.6",
    "transformers>=5.11,<6",
    "peft>=0.18",
    # The tests put their own data where this version of its trainer looks for it.
    "trl==1.16.*",
    "beartype>=0.20",
    "pytest>=8",
    "pytest-xdist>=3.6",
]

setup(
    name="qa_jax",
    version="0.1.0",
    description="Qwen2-Audio in JAX: speech, sound and music in, text out",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["qa_jax", "qa_jax.*"]), "convert_weights"],
    package_data={
        "qa_jax.serve": ["page/*"],
        "qa_jax.evaluate.benchmarks": ["*.yaml"],
        "qa_jax.evaluate.report": ["page.html"],
    },
    package_dir={"convert_weights": "tools/convert_weights"},
    install_requires=[
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3.2",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.2,<0.13",
        "numpy>=2",
        "librosa>=0.11",
        "scipy>=1.11",
        "soundfile>=0.13",
        "sentencepiece>=0.2",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "grain>=0.2.12",
        "jsonargparse>=4.49",
        "PyYAML>=6",
        "huggingface-hub>=0.30",
        "prompt_toolkit>=3.0.40",
        "rapidfuzz>=3.9",
        "rich>=13",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "microphone": ["sounddevice>=0.5"],
        "beam": ["apache-beam>=2.60"],
        "datasets": ["datasets>=3.6"],
        "demo": demo,
        "parity": parity,
        "eval": evaluation,
        "gcs": gcs,
        "serve": serve,
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "cuda12": ["jax[cuda12]>=0.10,<0.13"],
        "dev": [
            *demo,
            *evaluation,
            *gcs,
            *serve,
            # A browser's driver, and readers of subtitles.
            "selenium>=4.20",
            "srt>=3.5",
            "webvtt-py>=0.5",
            # The TPU's compiler, which needs no TPU: for tests of `qa-jax plan`.
            'jax[tpu]>=0.10,<0.13; sys_platform == "linux" and platform_machine == "x86_64"',
            "beartype>=0.20",
            # Of other forms of datasets; webdataset only writes those of the tests.
            "datasets>=3.6",
            "webdataset>=1",
            "hypothesis>=6",
            "import-linter>=2.3",
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=0.29",
            "mypy>=1.15",
            "pre-commit>=4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": ["qa-jax = qa_jax.cli:main"],
        "lmms_eval.models": ["qa_jax = qa_jax.evaluate.lmms_eval:manifests"],
    },
)
