"""FSDP on two processes: the same run as on one, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pixelbert import PixelBertForPreTraining, cli
from test_faults import RECIPE


def test_shards_are_the_whole(tmp_path: Path) -> None:
    plain = RECIPE["model"] | {"dropout": 0.0, "num_hidden_layers": 2}
    recipe = RECIPE | {"model": plain, "keep_best": "itm_accuracy", "epochs": 1.0}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["train", str(tmp_path / "run.yaml"), "--output"]
    cli.main([*arguments, str(tmp_path / "whole")])

    output = tmp_path / "shards"
    script = Path(__file__).with_name("fsdp_on_cpu.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    options: dict[str, Any] = {"env": environment, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    log, command = output / "metrics.jsonl", [*launch, *arguments, str(output)]
    process = subprocess.Popen(command, **options)
    while not (log.exists() and log.read_text().count("\n") >= 6) and process.poll() is None:
        time.sleep(0.01)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert log.exists(), said
    assert not (output / "final").exists()
    process = subprocess.Popen(command, **options)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert "going on after step" in " ".join(said.split())

    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (
        tmp_path / "whole", output
    )]  # fmt: skip
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for mine, theirs in zip(*rows, strict=True):
        for name in ("loss", "mlm_loss", "itm_loss", "grad_norm_max"):
            assert mine[name] == pytest.approx(theirs[name], abs=2e-5), (mine["step"], name)
    for name in ("final", "best"):
        models = [PixelBertForPreTraining.from_pretrained(run / name) for run in (tmp_path / "whole", output)]
        for (key, mine), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0, msg=key)
