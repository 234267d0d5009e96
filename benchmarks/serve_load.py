"""The web app under load: parallel clients for a while, every score compared with that of `PixelBert` alone.

Starts a server of its own and fails on any error, or a score that differs by more than 1e-5 (in fp32). Half of the
requests bring a photo that the server has not seen, so that it goes through the CNN; the others one that it remembers.
Printed, and written as JSON: requests a second, latency, the server's memory at its start, after warming up and at the
end, and how many requests its model took at once.

    python benchmarks/serve_load.py runs/mine/final --json serve_load.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from prometheus_client.parser import text_string_to_metric_families

from pixelbert import PixelBert, demo
from pixelbert.files import write_json

PHOTOS = Path(demo.__file__).parent / "photos"
SHOWN, SENTENCES = 16, 5  # photos to choose from; sentences in a request
TOLERANCE = 1e-5


def form(photo: bytes, texts: list[str]) -> bytes:
    """A multipart body, with the boundary `b`."""
    parts = [f'Content-Disposition: form-data; name="text"\r\n\r\n{text}'.encode() for text in texts]
    parts.append(b'Content-Disposition: form-data; name="image"; filename="photo"\r\n\r\n' + photo)
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


class Load:
    """What the clients share: what to ask, what is right, and what came back."""

    def __init__(self, port: int, model: PixelBert, seconds: float, new: float) -> None:
        entries = json.loads((PHOTOS / "attribution.json").read_text())[:SHOWN]
        self.port, self.new = port, new
        self.photos = [(PHOTOS / entry["file_name"]).read_bytes() for entry in entries]
        self.texts = [entry["captions"][0] for entry in entries]
        self.expected = model.match(self.photos, self.texts)
        self.end = time.monotonic() + seconds
        self.seconds: list[float] = []
        self.worst = 0.0
        self.errors: list[str] = []

    def client(self, number: int) -> None:
        """One client, which asks again as soon as it is answered."""
        draw, asked = random.Random(number), 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while time.monotonic() < self.end:
            photo, texts = draw.randrange(SHOWN), draw.sample(range(SHOWN), SENTENCES)
            # What stands after the end of a JPEG is not decoded, but makes it another file.
            ending = f"{number} {asked}".encode() if draw.random() < self.new else b""
            asked += 1
            start = time.perf_counter()
            try:
                body = form(self.photos[photo] + ending, [self.texts[t] for t in texts])
                headers = {"Content-Type": "multipart/form-data; boundary=b"}
                connection.request("POST", "/api/v1/match", body, headers)
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 200:
                    self.errors.append(f"{answer.status} {said.decode()}")
                    continue
                scores = [one["score"] for one in json.loads(said)["scores"]]
            except OSError as error:
                self.errors.append(repr(error))
                connection.close()
                continue
            self.seconds.append(time.perf_counter() - start)
            self.worst = max(self.worst, float(np.abs(np.array(scores) - self.expected[photo, texts]).max()))


def counted(port: int) -> dict[str, float]:
    """The server's own figures."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--new", type=float, default=0.5, help="share of photos that the server has not seen")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kind = ["--device", options.device, "--precision", "fp32"]
    command = [sys.executable, "-m", "pixelbert", "serve", "--checkpoint", options.checkpoint, "--port", "0", *kind]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = re.search(r":(\d+)  ", server.stdout.readline())
        if said is None:
            raise SystemExit("the server did not start")
        port = int(said[1])
        time.sleep(1)
        memory = [counted(port)["process_resident_memory_bytes"]]
        model = PixelBert.from_pretrained(options.checkpoint, options.device, "fp32")
        load = Load(port, model, options.seconds, options.new)
        clients = [threading.Thread(target=load.client, args=[i]) for i in range(options.clients)]
        for client in clients:
            client.start()
        time.sleep(options.seconds / 4)
        memory.append(counted(port)["process_resident_memory_bytes"])
        for client in clients:
            client.join()
        after = counted(port)
        memory.append(after["process_resident_memory_bytes"])
    finally:
        server.terminate()
        stopped = server.wait(60)
    p50, p95 = np.percentile(load.seconds, [50, 95]) if load.seconds else (0, 0)
    figures = {
        "clients": options.clients,
        "seconds": options.seconds,
        "requests": len(load.seconds),
        "errors": len(load.errors),
        "requests_per_second": round(len(load.seconds) / options.seconds, 2),
        "latency_p50_seconds": round(p50, 3),
        "latency_p95_seconds": round(p95, 3),
        "largest_difference_of_a_score": load.worst,
        "images_encoded": int(after["pixelbert_images_encoded_total"]),
        "requests_at_once_mean": round(
            after["pixelbert_batch_requests_sum"] / max(after["pixelbert_batch_requests_count"], 1), 1
        ),
        "server_mb_at_start_warm_end": [round(bytes / 1e6) for bytes in memory],
        "machine": f"{options.device}, {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        write_json(options.json, figures)
    if load.errors or not load.seconds or load.worst > TOLERANCE or stopped:
        raise SystemExit(f"failed: {load.errors[:3]}, difference {load.worst:.1e}, exit status {stopped}")


if __name__ == "__main__":
    main()
