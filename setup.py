"""The library of own operators; everything else of the project stands in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("engines/kernels")


class BuildIfPossible(build_ext):
    """Builds the library where there is a compiler: an editable install would look for it even where that failed."""

    def get_output_mapping(self) -> dict[str, str]:
        """Files of an editable install, by what they are called there."""
        return {output: source for output, source in super().get_output_mapping().items() if Path(source).exists()}

    def get_outputs(self) -> list[str]:
        """Files that were built."""
        return (
            list(self.get_output_mapping()) if self.inplace else [path for path in super().get_outputs() if Path(path).exists()]
        )


setup(
    cmdclass={"build_ext": BuildIfPossible},
    ext_modules=[
        Extension(
            "quasar.engines.kernels._operators",
            sources=sorted(map(str, KERNELS.glob("*.cpp"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"],
            optional=True,  # without it, ONNX Runtime's own operators run
        )
    ],
)
