"""The launch files with stubs of Slurm and maskperf, and the commands of their pages."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from maskperf.overrides import validate, with_overrides
from maskperf.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/launch").glob("*.md"))}
LAUNCH_FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "launch").iterdir())}
TEXTS = {**PAGES, **LAUNCH_FILES, "docker": (ROOT / "docs/docker.md").read_text(encoding="utf-8")}
# A key of the configuration with its value, anywhere in a text.
PAIR = re.compile(r"(?<![\w./$-])((?:data|model|optimizer|evaluation|system|mlperf)\.\w+=[^\s`\"');|]+)")
NOTE_ARGUMENTS = '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$0")" "$@" "" >>"$NOTES"\n'


def run(command, folder=None, variables=None):
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


class Cluster:
    """A copy of the launch files beside stubs of all programs that they call."""

    def __init__(self, base):
        self.folder, self.bin, self.notes = base / "my tree", base / "bin", base / "notes.txt"
        shutil.copytree(ROOT / "launch", self.folder / "launch")
        self.bin.mkdir()
        for name in ("bash", "basename", "cat", "dirname", "env", "grep", "seq"):
            (self.bin / name).symlink_to(shutil.which(name))
        srun = '[[ "$*" == *drop_caches* ]] && exit "${SUDO_CODE:-0}"\nexit "${CODE:-0}"\n'
        self.add(self.bin / "srun", NOTE_ARGUMENTS + srun)
        self.add(self.bin / "scontrol", 'for n in $(seq 5 9); do printf "node%s\\n" "$n"; done\n')
        self.add(self.bin / "nvidia-smi", 'for n in $(seq 1 "${GPUS:-4}"); do printf "GPU %s: some\\n" "$n"; done\n')
        self.add(self.bin / "maskperf", NOTE_ARGUMENTS + 'exit "${CODE:-0}"\n')
        self.add(self.folder / ".venv/bin/torchrun", NOTE_ARGUMENTS)

    def add(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}")
        path.chmod(0o755)

    def run(self, name, *arguments, **environment):
        variables = {"PATH": str(self.bin), "NOTES": str(self.notes), **environment}
        return run([shutil.which("bash"), str(self.folder / "launch" / name), *arguments], self.folder, variables)

    def sbatch(self, *arguments, **environment):
        """Return what the job does as task 3 of an array; None removes a variable."""
        job = {"SLURM_JOB_ID": "70123", "SLURM_ARRAY_JOB_ID": "70120", "SLURM_ARRAY_TASK_ID": "3"}
        nodes = {"SLURM_JOB_NODELIST": "node[5-9]", "SLURM_JOB_NUM_NODES": "5", "SLURM_GPUS_ON_NODE": "8"}
        own = {"SLURM_CPUS_PER_TASK": "64", "SLURM_SUBMIT_DIR": str(self.folder)}
        variables = job | nodes | own | environment
        present = {key: value for key, value in variables.items() if value is not None}
        return self.run("slurm.sbatch", *arguments, **present)

    def calls(self):
        """Return name and arguments of every call of a stub, in order."""
        return [call.split("\n") for call in self.notes.read_text().split("\n\n") if call]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "call"),
    [
        ([], {}, 0, ["coco_batch_96", "runs=5", "processes=4"]),
        ([], {"CUDA_VISIBLE_DEVICES": "2,5,7"}, 0, ["coco_batch_96", "runs=5", "processes=3"]),
        (
            ["run_dir=a b"],
            {"RECIPE": "coco", "RUNS": "1", "PROCESSES": "2", "DATA": "/my coco", "WEIGHTS": "/w.pkl", "CODE": "6"},
            6,
            ["coco", "runs=1", "processes=2", "data.root=/my coco", "model.backbone_weights=/w.pkl", "run_dir=a b"],
        ),
    ],
)
def test_one_machine_makes_the_runs_that_were_asked_for(cluster, arguments, environment, code, call):
    assert cluster.run("one_machine.sh", *arguments, **environment).returncode == code
    assert cluster.calls() == [["maskperf", "run", *call]]


def test_one_machine_takes_the_maskperf_of_its_own_tree_first(cluster):
    cluster.add(cluster.folder / ".venv/bin/maskperf", '#!/usr/bin/env bash\necho "of the tree: $*"\n')
    assert cluster.run("one_machine.sh").stdout == "of the tree: run coco_batch_96 runs=5 processes=4\n"


def test_one_machine_without_a_gpu_or_maskperf_explains_the_fix(cluster):
    ended = cluster.run("one_machine.sh", GPUS="0")
    assert ended.returncode == 2 and "no GPU was found" in ended.stderr and "PROCESSES=2" in ended.stderr
    (cluster.bin / "nvidia-smi").unlink()
    assert cluster.run("one_machine.sh").returncode == 2
    (cluster.bin / "maskperf").unlink()
    ended = cluster.run("one_machine.sh")
    assert ended.returncode == 2 and "Fix: ./install.sh" in ended.stderr


def test_a_slurm_job_clears_caches_then_starts_torchrun_once_a_machine(cluster):
    ended = cluster.sbatch("mlperf.division=closed")
    assert ended.returncode == 0, ended.stderr
    clear, train = cluster.calls()
    assert clear[:5] == ["srun", "--ntasks-per-node=1", "sudo", "-n", "sh"]
    assert train == [
        *("srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1", str(cluster.folder / ".venv/bin/torchrun")),
        *("--nnodes=5", "--nproc-per-node=8"),
        *("--rdzv-id=70123", "--rdzv-backend=c10d", "--rdzv-endpoint=node5:20123"),
        *("-m", "maskperf", "run", "coco_batch_96"),
        *(f"run_dir={cluster.folder}/runs/coco_batch_96-70120/run_3", "mlperf.division=closed"),
    ]
    assert "the caches of all machines are cleared" in ended.stdout


def test_a_slurm_job_takes_its_settings_from_the_environment(cluster, tmp_path):
    slurm = {"SLURM_ARRAY_TASK_ID": None, "SLURM_GPUS_ON_NODE": None, "SLURM_SUBMIT_DIR": str(tmp_path)}
    own = {"RUN": "4", "GPUS_PER_NODE": "2", "MASKPERF_FOLDER": str(cluster.folder), "SERIES": "/s/five"}
    own |= {"RECIPE": "demo", "DATA": "/d", "WEIGHTS": "/w"}
    ended = cluster.sbatch("optimizer.max_epochs=1", "seed=3", **slurm, **own)
    assert ended.returncode == 0, ended.stderr
    train = cluster.calls()[1]
    assert "--nproc-per-node=2" in train
    pairs = ["run_dir=/s/five/run_4", "data.root=/d", "model.backbone_weights=/w", "optimizer.max_epochs=1", "seed=3"]
    assert train[train.index("run") :] == ["run", "demo", *pairs]


def test_a_slurm_job_without_rights_to_clear_caches_continues_with_a_message(cluster):
    ended = cluster.sbatch(SUDO_CODE="1", CODE="6")
    assert ended.returncode == 6 and len(cluster.calls()) == 2  # the code of the run
    assert "no right to clear the caches" in ended.stdout


def test_a_slurm_job_can_run_in_a_container(cluster):
    (cluster.folder / ".venv/bin/torchrun").unlink()
    assert cluster.sbatch(CONTAINER_IMAGE="x/maskperf:0.1.0", CONTAINER_MOUNTS="/a:/a").returncode == 0
    clear, train = cluster.calls()
    assert not any("container" in word for word in clear)
    assert train[3:7] == [
        *("--container-image=x/maskperf:0.1.0", "--container-mounts=/a:/a"),
        *(f"--container-workdir={cluster.folder}", "/opt/maskperf/bin/torchrun"),
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "./install.sh"),
        ({"SLURM_JOB_ID": None}, "sbatch launch/slurm.sbatch"),
        ({"SLURM_GPUS_ON_NODE": None}, "GPUS_PER_NODE=8"),
        ({"MASKPERF_FOLDER": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_slurm_job_that_cannot_run_explains_the_fix(changes, text, cluster):
    if not changes:
        (cluster.folder / ".venv/bin/torchrun").unlink()
    ended = cluster.sbatch(**changes)
    assert ended.returncode != 0 and text in ended.stderr and not cluster.notes.exists()


def test_the_lines_for_slurm_come_before_all_commands_and_ask_for_five_runs():
    lines = LAUNCH_FILES["slurm.sbatch"].splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(index < first_command for index, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert {"--array=0-4%1", "--ntasks-per-node=1", "--exclusive", "--no-requeue", "--nodes=2"} <= set(options)
    assert any(re.fullmatch(r"--time=\d+:\d\d:\d\d", option) for option in options)


DOCUMENTS = list(yaml.safe_load_all(LAUNCH_FILES["kubernetes.yaml"]))
KINDS = {document["kind"]: document for document in DOCUMENTS}
INDEXED = list(yaml.safe_load_all(re.findall(r"```yaml\n(.*?)```", PAGES["kubernetes"], re.DOTALL)[0]))


def test_the_kubernetes_file_has_volumes_a_runtime_and_a_job_by_name():
    names = [(document["apiVersion"], document["kind"], document["metadata"]["name"]) for document in DOCUMENTS]
    assert names == [
        ("v1", "PersistentVolumeClaim", "maskperf-data"),
        ("v1", "PersistentVolumeClaim", "maskperf-runs"),
        ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime", "maskperf"),
        ("trainer.kubeflow.org/v1alpha1", "TrainJob", "maskperf-run-0"),
    ]
    component = "app.kubernetes.io/component"
    assert [document["metadata"]["labels"][component] for document in DOCUMENTS] == ["setup", "setup", "setup", "run"]
    assert f"--selector {component}=setup" in PAGES["kubernetes"]


def test_the_train_job_calls_torchrun_with_a_run_that_can_be_divided_by_its_gpus():
    spec = KINDS["TrainJob"]["spec"]
    trainer = spec["trainer"]
    assert set(spec) == {"runtimeRef", "trainer"}
    assert set(trainer) == {"image", "command", "args", "numNodes", "resourcesPerNode", "numProcPerNode"}
    assert spec["runtimeRef"] == {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "maskperf"}
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == 8
    assert trainer["command"] == ["torchrun"]
    module, name, command, recipe, *pairs = trainer["args"]
    assert (module, name, command) == ("-m", "maskperf", "run")
    config = with_overrides(RECIPES[recipe](), pairs)
    validate(config)
    assert config.optimizer.batch_size % (trainer["numNodes"] * trainer["numProcPerNode"]) == 0
    assert config.run_dir.startswith("/runs/")


def test_the_runtime_is_that_of_torch_without_restarts():
    spec = KINDS["TrainingRuntime"]["spec"]
    assert spec["mlPolicy"] == {"numNodes": 1, "torch": {}}
    (node,) = spec["template"]["spec"]["replicatedJobs"]
    template = node["template"]
    assert node["name"] == "node"
    assert template["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert template["spec"]["backoffLimit"] == 0
    assert template["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["failurePolicy"] == {"maxRestarts": 0}


def pod_of(kind):
    if kind == "Job":
        return next(document for document in INDEXED if document["kind"] == "Job")["spec"]["template"]["spec"]
    return KINDS[kind]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("kind", ["TrainingRuntime", "Job"])
def test_pods_have_their_volumes_shared_memory_and_no_root(kind):
    pod = pod_of(kind)
    (container,) = pod["containers"]
    assert container["name"] == "node"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == {"/data", "/runs", "/dev/shm"}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    claims = {volumes[mounts[path]]["persistentVolumeClaim"]["claimName"] for path in ("/data", "/runs")}
    assert claims == {"maskperf-data", "maskperf-runs"}  # those of the test above
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000


def test_the_indexed_job_meets_at_its_first_pod():
    service, job = INDEXED
    spec, name = job["spec"], job["metadata"]["name"]
    (container,) = pod_of("Job")["containers"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod_of("Job")["subdomain"] == service["metadata"]["name"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    options = {"--nnodes=2", f"--nproc-per-node={gpus}", f"--master-addr={name}-0.{service['metadata']['name']}"}
    assert options <= set(container["args"])


def test_the_pod_that_prepares_the_data_is_whole():
    overrides = re.search(r"--overrides='\n(.*?)'\n", PAGES["kubernetes"], re.DOTALL)
    spec = json.loads(overrides[1])["spec"]
    assert spec["containers"][0]["args"][:2] == ["prepare", "coco"]
    assert spec["containers"][0]["image"] == KINDS["TrainJob"]["spec"]["trainer"]["image"]


def test_five_runs_on_kubernetes_differ_in_name_and_folder_only():
    expression = re.search(r'sed "([^"]+)"', PAGES["kubernetes"])[1].replace("$number", "3")
    changed = run(["sed", expression, str(ROOT / "launch/kubernetes.yaml")]).stdout
    *setup, job = yaml.safe_load_all(changed)
    assert setup == DOCUMENTS[:-1]
    assert job["metadata"]["name"] == "maskperf-run-3"
    assert job["spec"]["trainer"]["args"][-1] == "run_dir=/runs/coco_batch_96/run_3"


@pytest.mark.parametrize("name", TEXTS)
def test_every_key_with_a_value_can_be_used(name):
    pairs = [pair for pair in PAIR.findall(TEXTS[name]) if "$" not in pair]
    assert pairs or name in ("docker", "slurm.sbatch")
    validate(with_overrides(RECIPES["coco_batch_96"](), pairs))


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_recipe_that_is_named_is_there(name):
    for path in re.findall(r"(?<![\w/.-])(?:\./)?((?:launch|docs)/[\w/]+\.\w+|\w+\.sh)\b", TEXTS[name]):
        assert (ROOT / path).is_file() or (ROOT / "launch" / path).is_file(), path
    for recipe in re.findall(r"\bcoco_batch_\d+\b|(?<=\bRECIPE=)\w+", TEXTS[name]):
        assert recipe in RECIPES


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_the_pages_are_shell_that_bash_can_read(page):
    blocks = re.findall(r"```\n(.*?)```", PAGES[page], re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        read = run(["bash", "-n", "-c", block])
        assert read.returncode == 0, block + read.stderr


def test_the_variables_of_the_pages_are_read_by_their_files():
    for page, file in (("one_machine", "one_machine.sh"), ("slurm", "slurm.sbatch")):
        named = set(re.findall(r"(?:\b|`)([A-Z][A-Z_]{2,})[=`]", PAGES[page]))
        own = {word for word in named if not word.startswith(("NCCL_", "PWD", "SBATCH"))}
        assert own
        assert {word for word in own if f"${{{word}:-" not in LAUNCH_FILES[file]} == set()
