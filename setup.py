"""Builds `mindllm_engine._native` from csrc/: C++17 with pybind11 and no torch. All else is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile().install()  # as many files at once as there are cores

setup(
    ext_modules=[
        Pybind11Extension(
            "mindllm_engine._native",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.hpp")),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
