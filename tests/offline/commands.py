"""Runs commands of pixelbert one after another and prints as JSON what each of them tried to reach: see
test_offline.py, which starts it.

    commands.py OWN COMMANDS        OWN: 1 in a network of its own; COMMANDS: a JSON list of lists
"""

import contextlib
import ctypes
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWN_NETWORK = sys.argv[1] == "1"
NOTICED = Path(os.environ["NOTICED"])
ELSEWHERE = "192.0.2.1"  # an address that is kept for documentation
REPORT: dict[str, dict[str, Any]] = {}


def bring_loopback_up() -> None:
    """In a new network it is there, and down."""
    import fcntl

    siocsifflags, iff_up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sh14x", b"lo", iff_up))


def without_a_way() -> int:
    """How often, in a network of its own, something found no way out, compiled code included; and how often a resolver
    was asked on loopback, where there is none now."""
    if not OWN_NETWORK:
        return 0
    lines = [line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines()]
    counted = {
        f"{names[0]}{name}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
    six = Path("/proc/self/net/snmp6").read_text().splitlines()
    counted |= {name: int(value) for name, value in map(str.split, six)}
    return sum(counted[name] for name in ("Ip:OutNoRoutes", "Udp:NoPorts", "Ip6OutNoRoutes", "Udp6NoPorts"))


@contextlib.contextmanager
def watched(name: str) -> Iterator[None]:
    before, unsent, said, failure = len(NOTICED.read_text()), without_a_way(), io.StringIO(), None
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except (Exception, SystemExit) as error:
        failure = f"{type(error).__name__}: {error}"
    REPORT[name] = {
        "noticed": NOTICED.read_text()[before:].splitlines(),
        "unsent": without_a_way() - unsent,
        "said": said.getvalue(),
        "failure": failure,
        "seconds": round(time.monotonic() - started, 1),
    }


def ask(port: int) -> None:
    """A visit to the page and a question over HTTP; then the signal that ends the server."""
    page, boundary = f"http://127.0.0.1:{port}/", b"--b\r\nContent-Disposition: form-data; name="
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):  # it is not up yet
                REPORT["page"] = {"said": urllib.request.urlopen(page).read().decode()}
                break
            time.sleep(0.1)
        photo = Path("photos/0.jpg").read_bytes()
        form = (
            boundary
            + b'"text"\r\n\r\na dog\r\n'
            + boundary
            + b'"image"; filename="x"\r\n\r\n'
            + photo
            + b"\r\n--b--\r\n"
        )
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = urllib.request.urlopen(urllib.request.Request(page + "api/v1/match", form, head))
        REPORT["answer"] = {"said": answer.read().decode()}
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def run(command: list[str]) -> None:
    from pixelbert import cli

    if command[0] == "serve":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [*command, "--port", str(port)]
        threading.Thread(target=ask, args=[port], daemon=True).start()
    cli.main(command)


def load_with_transformers() -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

    import pixelbert  # noqa: F401  (which tells transformers of its classes)

    for kind in (AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer):
        kind.from_pretrained("runs/tiny/final")


def use_onnx_runtime() -> None:
    """What `export` compares with, and a moment more than it needs. (Exporting itself takes long.)"""
    import onnx
    import onnxruntime

    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", shape[:1], shape[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    time.sleep(1)


def load(name: str) -> None:
    from pixelbert import PixelBert

    PixelBert.from_pretrained(name)


def reach_out_in_compiled_code() -> None:
    address = struct.pack("=H2s4s8x", socket.AF_INET, b"\0\x09", socket.inet_aton(ELSEWHERE))
    with socket.socket() as some:
        some.settimeout(0)  # where there is a network, nobody waits for it
        ctypes.CDLL(None).connect(some.fileno(), address, len(address))


if __name__ == "__main__":
    if OWN_NETWORK:
        bring_loopback_up()
    for one in json.loads(sys.argv[2]):
        with watched(" ".join(one[:2])):
            run(one)
    with watched("transformers"):
        load_with_transformers()
    with watched("onnxruntime"):
        use_onnx_runtime()
    with watched("settings"):
        from huggingface_hub import constants

        print(constants.HF_HUB_DISABLE_TELEMETRY, os.environ.get("ORT_DISABLE_TELEMETRY"))
    with watched("a folder mistyped"):
        load("runs/tinny")
    # The watch itself: attempts that have to be seen.
    with watched("the hub's client"):  # without its patience
        from huggingface_hub import get_session

        get_session().get("https://huggingface.co")
    with watched("a child"):
        subprocess.run([sys.executable, "-c", f"import socket; socket.socket().connect(('{ELSEWHERE}', 9))"])
    with watched("compiled code"):
        reach_out_in_compiled_code()
    print(json.dumps(REPORT))
