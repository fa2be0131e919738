"""launch/: what a machine reads parses, and no hyper-parameter hides there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcvideo.processes.signals import REQUEUE_EXIT_CODE
from tests.conftest import SmallWorld
from tests.spawned import children, finished, free_port, running, tool

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
FILES = sorted(LAUNCH.iterdir())
SHELL = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
YAML = [path for path in FILES if path.suffix == ".yaml"]


def name(path: Path) -> str:
    return path.name


def test_every_file_is_a_kind_that_is_checked() -> None:
    assert SHELL
    assert YAML
    assert sorted([*SHELL, *YAML]) == FILES


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_shell_scripts_parse_and_can_be_run(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("path", YAML, ids=name)
def test_yaml_files_parse_and_their_scripts_too(path: Path) -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text()))
    assert all(documents)
    for script in (text for content in documents for text in (content.get("setup", ""), content.get("run", ""))):
        assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize("path", [*SHELL, *YAML], ids=name)
def test_every_start_goes_through_the_one_environment(path: Path) -> None:
    if path.name == "environment.sh":
        script = (
            f'unset NCCL_DEBUG; PYTORCH_CUDA_ALLOC_CONF=mine; . {path}; echo "$NCCL_DEBUG $PYTORCH_CUDA_ALLOC_CONF"'
        )
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["WARN", "mine"]
        return
    text = path.read_text()
    assert "environment.sh" in text or "launch/torchrun.sh" in text


@pytest.mark.parametrize(("status", "requeued"), [(REQUEUE_EXIT_CODE, True), (1, False), (0, False)])
def test_a_recipe_on_slurm_waits_for_the_stage_that_it_tells_to_save(
    tmp_path: Path, status: int, requeued: bool
) -> None:
    asked, told, began = tmp_path / "asked", tmp_path / "told", tmp_path / "began"
    # In the place of the pipeline: it saves when it is told to, and takes its time.
    (tmp_path / "python").write_text(
        f"#!/bin/bash\ntrap 'sleep 0.5; touch {told}; exit {status}' USR1\n"
        f'echo "$ARCVIDEO_LAUNCHER | $@" > {began}.new; mv {began}.new {began}\nwhile :; do sleep 0.1; done\n'
    )
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\ncase "$1" in requeue) echo "$2" > {asked};; *) echo node-1;; esac\n'
    )
    for program in ("python", "scontrol"):
        (tmp_path / program).chmod(0o755)
    known = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-1", "SLURM_JOB_ID": "7"}
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "environment.sh").write_text("export FOUND=1\n")
    known["SLURM_SUBMIT_DIR"] = str(tmp_path)
    command = ["bash", str(LAUNCH / "slurm_recipe.sbatch"), "recipe=tiny_shorts"]
    with running(command, env=known) as job:
        while not began.exists():
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == status
    assert told.exists()
    assert asked.exists() == requeued
    assert began.read_text() == "srun --kill-on-bad-exit=0 python | -m arcvideo.pipeline recipe=tiny_shorts\n"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_hyper_parameter_stands_in_a_launch_file(path: Path) -> None:
    code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
    assert not re.search(r"\b(optimizer|schedule|runner|grpo|data|model|engine)[.=]\w", code)


@pytest.mark.parametrize(("status", "requeued"), [(REQUEUE_EXIT_CODE, True), (1, False), (0, False)])
def test_slurm_queues_a_preempted_job_again_and_no_other(tmp_path: Path, status: int, requeued: bool) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\ncase "$1" in requeue) echo "$2" > {asked};; *) echo node-1;; esac\n'
    )
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-1", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch"), "stage=sft"], env=environment, check=False)
    assert done.returncode == status
    assert asked.exists() == requeued


def test_kubernetes_asks_for_what_a_job_needs_and_starts_a_stopped_run_again() -> None:
    job = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (LAUNCH.parent / container["command"][0]).exists()
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]
    }
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule]
    assert codes == [{"containerName": container["name"], "operator": "In", "values": [REQUEUE_EXIT_CODE]}]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never", "a failure policy needs it"


def test_several_nodes_on_kubernetes_meet_at_pod_0_and_share_the_pod_of_one_node() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes_nodes.yaml").read_text())
    one = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())["spec"]
    spec, name = job["spec"], job["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert told["NNODES"] == str(spec["completions"]) == str(spec["parallelism"])
    assert told["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert (service["spec"]["selector"], service["spec"]["clusterIP"]) == ({"job-name": name}, "None")
    for key in ("image", "command", "resources", "volumeMounts"):
        assert container[key] == one["template"]["spec"]["containers"][0][key]
    assert spec["podFailurePolicy"] == one["podFailurePolicy"]


# Its command asks for metadata.name, which a Job with generateName does without.
VALIDATED = """
import sys
import kubernetes_validate, yaml
for document in yaml.safe_load_all(open(sys.argv[1])):
    kubernetes_validate.validate(document, sys.argv[2], strict=True)
"""


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("path", sorted(LAUNCH.glob("kubernetes*.yaml")), ids=name)
def test_kubernetes_files_fit_the_public_schema(tmp_path: Path, path: Path, version: str) -> None:
    python = str(tool("python", needs="kubernetes_validate"))
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("restartPolicy", "restartPolice"))
    good, bad = (
        subprocess.run([python, "-c", VALIDATED, str(file), version], capture_output=True, text=True, check=False)
        for file in (path, wrong)
    )
    assert good.returncode == 0, good.stderr
    assert bad.returncode != 0
    assert "restartPolice" in bad.stderr


READ_BY_SKYPILOT = """
import json, sys
import sky
for path in sys.argv[1:]:
    try:
        task = sky.Task.from_yaml(path)
    except ValueError as error:
        print(json.dumps({"refused": str(error)}))
        continue
    (machine,) = task.resources
    print(json.dumps({"nodes": task.num_nodes, "gpus": machine.accelerators, "envs": task.envs,
                      "mounts": list(task.storage_mounts), "run": task.run, "setup": task.setup}))
"""


def test_skypilot_itself_reads_its_files(tmp_path: Path) -> None:
    python = tool("python", needs="sky")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((LAUNCH / "skypilot.yaml").read_text().replace("num_nodes", "num_node"))
    paths = [*sorted(LAUNCH.glob("skypilot*.yaml")), wrong]
    env = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [str(python), "-c", READ_BY_SKYPILOT, *map(str, paths)]
    done = finished(command, seconds=300, cwd=LAUNCH.parent, env=env)
    assert done.returncode == 0, done.stderr
    *read, refused = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for path, seen in zip(paths, read, strict=False):
        written = yaml.safe_load(path.read_text())
        assert seen["nodes"] == written["num_nodes"]
        assert seen["gpus"] == {"H200": 8}
        assert seen["envs"] == written["envs"]
        assert seen["mounts"] == ["/mnt/arcvideo"]
        assert (seen["run"].strip(), seen["setup"].strip()) == (written["run"].strip(), written["setup"].strip())
    assert len(read) == 2
    assert "num_node" in refused["refused"]


def test_skypilot_names_its_machines_and_starts_a_script_that_is_there() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["accelerators"]
    assert "launch/torchrun.sh $WORDS" in task["run"]
    assert "WORDS" in task["envs"]


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(LAUNCH.parent), "PATH": path, **more}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_nodes_on_loopback_train_what_one_process_trains(tmp_path: Path, small_world: SmallWorld) -> None:
    words = ["stage=sft", *small_world.overrides, "optimizer.name=adamw", "data.packs_per_step=2", "evaluation.shards="]
    alone = [sys.executable, "-m", "arcvideo.train", *words, f"run_dir={tmp_path / 'alone'}"]
    done = finished(alone, env=environment(), seconds=900)
    assert done.returncode == 0, done.stderr
    place = {"NNODES": "2", "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    script = [str(LAUNCH / "torchrun.sh"), *words, f"run_dir={tmp_path / 'nodes'}"]
    with ExitStack() as both:
        nodes = [
            both.enter_context(
                running(script, env=environment(**place, NODE_RANK=str(rank)), stdout=subprocess.DEVNULL)
            )
            for rank in range(2)
        ]
        assert [node.wait(900) for node in nodes] == [0, 0]
    assert losses(tmp_path / "nodes" / "sft") == pytest.approx(losses(tmp_path / "alone" / "sft"), rel=1e-4)


@pytest.mark.slow
def test_ranks_under_torchrun_save_when_slurm_says_so_and_the_job_is_queued_again(
    tmp_path: Path, small_world: SmallWorld
) -> None:
    asked = tmp_path / "asked"
    # What Slurm's own would do: one task of the job, told to stop before the limit.
    (tmp_path / "srun").write_text(f'#!/bin/sh\nshift 4\nNPROC=2 exec {LAUNCH / "torchrun.sh"} "$@"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\ncase "$1" in requeue) touch {asked};; *) echo node-1;; esac\n')
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    known = environment(SLURM_JOB_NODELIST="node-1", SLURM_JOB_ID="7")
    known["PATH"] = f"{tmp_path}{os.pathsep}{known['PATH']}"
    words = [word for word in small_world.overrides if not word.startswith("runner.steps")]
    words += ["stage=sft", "optimizer.name=adamw", "data.packs_per_step=2", "evaluation.shards=", "runner.steps=200"]
    with running(
        ["bash", str(LAUNCH / "slurm.sbatch"), *words, f"run_dir={tmp_path}"], env=known, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        assert any("step 2/200" in line for line in job.stdout)
        (agent,) = children(job.pid)
        os.kill(agent, signal.SIGUSR1)
        job.stdout.read()
        assert job.wait(600) == REQUEUE_EXIT_CODE
    assert asked.exists()
    (saved,) = (tmp_path / "sft" / "checkpoints").glob("step-*/manifest.json")
    assert int(saved.parent.name.removeprefix("step-")) < 200
