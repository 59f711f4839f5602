"""What the wheel holds beside the code: conf, MNIST and the shipped models, under share/scm."""

from pathlib import Path

from setuptools import setup

SHIPPED = ("conf", "data/mnist", "pretrained")

folders = [
    folder for top in SHIPPED for folder in (Path(top), *Path(top).rglob("*")) if folder.is_dir()
]
setup(
    data_files=[
        (f"share/scm/{folder}", [str(file) for file in folder.iterdir() if file.is_file()])
        for folder in folders
    ]
)
