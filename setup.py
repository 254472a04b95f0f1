"""The packages of the wheel: three folders of the repository become one top-level package."""

from setuptools import find_packages, setup

FOLDERS = {"hskd": "hskd", "hskd.analysis": "analysis", "hskd.benchmarks": "benchmarks"}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for package, folder in FOLDERS.items()
        for name in (package, *(f"{package}.{inner}" for inner in find_packages(folder)))
    ],
)
