"""The launch scripts, run as they are, among commands that write down what they were asked."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest

SCRIPTS = commands.ROOT / "scripts"
FLAGS = ("--config=configs/tinybert_general.py", "--workdir=gs://bucket/general")
ALIVE = "-o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
ON_HOSTS = (FLAGS[0], "--workdir=/mnt/shared/general")

# What gcloud does of a slice: its state lies in a file; training and setups end as their
# plans say, of which "preempted" takes the machine away. Some of its descriptions find no network.
GCLOUD = """
import json, os, pathlib, sys
place = pathlib.Path(os.environ["PLACE"])
words = sys.argv[1:]
with (place / "calls").open("a") as file:
    file.write(json.dumps(words) + "\\n")
verb, command, state = words[3], words[-1], place / "state"
if verb == "describe":
    asked = (place / "calls").read_text().count('"describe"')
    if str(asked) in os.environ["OFFLINE"].split(",") or os.environ["OFFLINE"] == "always":
        sys.exit("WARNING: old\\nERROR: no network\\n- details:\\n  name: slice")
    if not state.exists():
        sys.exit("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'slice' was not found")
    coming, _, rest = state.read_text().partition(",")
    print(coming)
    state.write_text(rest or coming)
elif verb == "create":
    if state.exists():
        sys.exit("it is there already")
    state.write_text(os.environ["COMES"])
elif verb == "delete":
    state.unlink()
elif verb == "scp":
    assert pathlib.Path(words[4]).stat().st_size > 10_000
else:
    path = place / ("plan" if "exec" in command else "setups")
    plan = path.read_text().split() or ["0"]
    path.write_text(" ".join(plan[1:]))
    if plan[0] == "preempted":
        state.write_text(os.environ["GOES"])
        sys.exit(255)
    sys.exit(int(plan[0]))
"""


def write_program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable} -SE\n{text}")  # -SE: starts in no time
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def script(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a script with the folder's own programs first on the path."""
    paths = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    return subprocess.run(
        words,
        env=os.environ | {"PATH": paths, "PLACE": str(place)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def tpu(
    place: Path,
    *words: str,
    plan: str = "0",
    comes: str = "READY",
    goes: str = "PREEMPTED",
    offline: str = "",
    setups: str = "",
) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """What tpu.py says, and the calls of gcloud that change something."""
    write_program(place / "bin", "gcloud", GCLOUD)
    (place / "plan").write_text(plan)
    (place / "setups").write_text(setups)
    program = (sys.executable, str(SCRIPTS / "tpu.py"))
    where = ("slice", "--zone=us-west4-a", "--poll=0.01")
    states = {"COMES": comes, "GOES": goes, "OFFLINE": offline}
    done = script(place, *program, words[0], *where, *words[1:], **states)
    path = place / "calls"
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return done, [call for call in calls if call[3] != "describe"]


def verbs(calls: list[list[str]]) -> list[str]:
    """The verb of each call, of ssh what it does."""
    kinds = {"ssh": lambda call: "train" if "exec" in call[-1] else "setup"}
    return [kinds.get(call[3], lambda call: call[3])(call) for call in calls]


def test_a_run_makes_a_slice_trains_and_gives_it_back(tmp_path):
    done, calls = tpu(tmp_path, "run", "--type=v5litepod-16", "--spot", "--", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "scp", "setup", "train", "delete"]
    assert calls[0][:5] == ["compute", "tpus", "tpu-vm", "create", "slice"]
    assert {"--zone=us-west4-a", "--accelerator-type=v5litepod-16", "--spot"} <= set(calls[0])
    assert "--worker=all" in calls[3]
    words = shlex.join([".venv/bin/python", "train.py", "--distributed", *FLAGS])
    assert f"exec {words};" in calls[3][-1]


@pytest.mark.parametrize("queued", [False, True])
def test_a_slice_that_is_taken_away_is_made_again_and_runs_the_same_command(queued, tmp_path):
    comes, goes = (
        ("PROVISIONING,ACTIVE", "SUSPENDED") if queued else ("CREATING,READY", "PREEMPTED")
    )
    flags = ["--queued", "--spot"] if queued else ["--spot"]
    plan = "preempted preempted 75 0"
    done, calls = tpu(tmp_path, "run", *flags, "--", *FLAGS, plan=plan, comes=comes, goes=goes)
    assert done.returncode == 0, done.stdout + done.stderr
    again = ["delete", "create", "scp", "setup", "train"]
    # Told to stop, it goes on where it is.
    assert verbs(calls) == [*again[1:], *again, *again, "train", "delete"]
    assert len({call[-1] for call in calls if "exec" in call[-1]}) == 1
    makers = {call[2] for call in calls if call[3] in ("create", "delete")}
    assert makers == {"queued-resources" if queued else "tpu-vm"}
    assert all("--node-id=slice" in call for call in calls if call[3] == "create") == queued


def test_a_slice_that_is_taken_away_while_it_is_set_up_is_made_again(tmp_path):
    setups = "preempted preempted 0 preempted 0"
    done, calls = tpu(tmp_path, "run", "--", *FLAGS, setups=setups, plan="preempted 0")
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = ["create", "scp", "setup"], ["delete", "create", "scp", "setup"]
    assert verbs(calls) == [*first, *again, *again, "train", *again, *again, "train", "delete"]


@pytest.mark.parametrize(("setups", "code", "times"), [("255 255 0", 0, 3), ("1 " * 9, 1, 4)])
def test_a_setup_that_fails_on_a_slice_that_is_there_is_tried_a_few_times(
    setups, code, times, tmp_path
):
    done, calls = tpu(tmp_path, "run", "--patience=4", "--", *FLAGS, setups=setups)
    assert done.returncode == code, done.stdout + done.stderr
    after = ["train", "delete"] if code == 0 else []
    assert verbs(calls) == ["create", *["scp", "setup"] * times, *after]
    assert ("slice stays, and costs" in done.stderr) == bool(code)


def test_a_slice_that_could_not_be_asked_for_is_not_taken_to_be_none(tmp_path):
    flags = ("--queued", "--", *FLAGS)
    done, calls = tpu(tmp_path, "run", *flags, plan="75 0", comes="ACTIVE", offline="1,3,4,6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verbs(calls) == ["create", "scp", "setup", "train", "train", "delete"]


def test_a_slice_of_which_nothing_is_known_is_left_alone(tmp_path):
    done, calls = tpu(tmp_path, "run", "--queued", "--", *FLAGS, offline="always")
    assert done.returncode == 1 and calls == []
    assert len(done.stderr.splitlines()) == 1
    assert "(ERROR: no network)" in done.stderr and "the same command" in done.stderr


@pytest.mark.parametrize(
    ("plan", "code", "times"), [("2", 2, 1), ("1", 1, 1), ("75 75 75 0", 75, 3)]
)
def test_a_run_that_cannot_go_on_is_not_started_for_ever(plan, code, times, tmp_path):
    done, calls = tpu(tmp_path, "run", "--", *FLAGS, plan=plan)
    assert done.returncode == code and f"the run ended with {code}" in done.stderr
    assert verbs(calls) == ["create", "scp", "setup", *["train"] * times]  # it stays, to look at


def test_parts_of_a_run_are_commands_of_their_own(tmp_path):
    for command in ("create", "setup", "stop", "delete"):
        assert tpu(tmp_path, command)[0].returncode == 0
    _, calls = tpu(tmp_path, "create", "--queued", comes="ACTIVE")
    assert [call[3] for call in calls] == ["create", "scp", "ssh", "ssh", "delete", "create"]
    assert "kill -TERM" in calls[3][-1]


def test_a_dry_run_says_the_commands_and_runs_none(tmp_path):
    done, calls = tpu(tmp_path, "run", "--dry-run", "--queued", "--", *FLAGS)
    assert done.returncode == 0 and calls == [] and done.stderr == ""
    said = [shlex.split(line.removeprefix("$ ")) for line in done.stdout.splitlines()]
    assert [words[4] if words[0] == "gcloud" else words[0] for words in said] == [
        *("create", "git", "scp", "ssh", "ssh", "delete")
    ]


@pytest.mark.parametrize("name", ["tpu.py", "hosts.py"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give train.py's flags behind --"),
        ((FLAGS[0], "--workdir=runs/general"), "lies on a machine that may go"),
        ((FLAGS[0], "--workdir=/home/me/general"), "lies on a machine that may go"),
    ],
)
def test_a_workdir_that_goes_with_its_machine_is_refused(name, words, said, tmp_path):
    mine = ("run", "slice", "--zone=z") if name == "tpu.py" else ("host", "--folder=/mnt/x")
    done = script(tmp_path, sys.executable, str(SCRIPTS / name), *mine, "--", *words)
    assert done.returncode == 2 and said in done.stderr


# ssh to a machine that is a folder: the command runs there, really; files say that the connection
# is cut in the end, or that only training reaches it. train.py says what it was told, waits to be
# stopped if a file says so, and ends as the plan of its host says.
SSH = """
import os, pathlib, subprocess, sys
place = pathlib.Path(os.environ["PLACE"])
host, command = sys.argv[-2:]
os.chdir(place / host)
if "exec" not in command and pathlib.Path("unreached").exists():
    sys.exit(255)
code = subprocess.call(["bash", "-c", command])
sys.exit(255 if "exec" in command and pathlib.Path("cut").exists() else code)
"""
HOSTNAME = """
import pathlib
print(pathlib.Path.cwd().name)
"""
TRAIN = """
import os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
with open("told", "a") as file:
    print(*sys.argv[1:], file=file)
print("training", flush=True)
while pathlib.Path("waits").exists() and not told:
    time.sleep(0.02)
if told:
    pathlib.Path("waits").unlink(missing_ok=True)  # a next one would end by itself
    os._exit(75)  # as train.py: a second signal, during Python's own end, would be its end
plan = pathlib.Path("plan").read_text().split()
pathlib.Path("plan").write_text(" ".join(plan[1:]))
sys.exit(int(plan[0]))
"""


def hosts(place: Path, plans: dict[str, str], folder: str = ".") -> list[str]:
    """Makes machines; returns the command that trains on them, in a folder as they call it."""
    write_program(place / "bin", "ssh", SSH)
    write_program(place / "bin", "hostname", HOSTNAME)
    for name, plan in plans.items():
        (place / name).mkdir()
        (place / name / "plan").write_text(plan)
        (place / name / "train.py").write_text(TRAIN)
    flags = (f"--folder={folder}", f"--python={sys.executable}", "--port=99")
    return [sys.executable, str(SCRIPTS / "hosts.py"), *plans, *flags, "--", *ON_HOSTS]


def test_hosts_train_together_and_go_on_after_an_interruption(tmp_path):
    done = script(tmp_path, *hosts(tmp_path, {"one": "75 0", "two": "75 0"}))
    assert done.returncode == 0, done.stdout + done.stderr
    for index, name in enumerate(("one", "two")):
        group = f"--coordinator=one:99 --processes=2 --process={index}"
        assert (tmp_path / name / "told").read_text() == f"{' '.join(ON_HOSTS)} {group}\n" * 2
    assert "one: training\n" in done.stdout and "two: training\n" in done.stdout


def test_the_host_that_failed_says_why_all_ended(tmp_path):
    done = script(tmp_path, *hosts(tmp_path, {"one": "75", "two": "2", "three": "75"}))
    assert done.returncode == 2 and "the run ended with 2" in done.stderr


@contextlib.contextmanager
def training(place: Path, command: list[str], **environment: str) -> Iterator[subprocess.Popen]:
    """Runs a script until all of its hosts train."""
    environment = os.environ | {"PLACE": str(place)} | environment
    environment["PATH"] = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            for _ in place.rglob("train.py"):
                read_until(process, ": training")
            yield process
        finally:
            process.kill()  # if it still runs, the test has failed; so it leaves nothing behind
            for file in place.rglob("waits"):
                file.unlink()


def read_until(process: subprocess.Popen, words: str) -> None:
    """Reads what a script says up to a line with the words."""
    while words not in (line := process.stdout.readline()):
        assert line, f"it ended without: {words}"


@pytest.mark.parametrize(
    ("folder", "place"), [("~/my run's $HOME", "my run's $HOME"), ("~", ""), ("a  b", "one/a  b")]
)
def test_a_folder_may_have_any_name_and_lie_in_the_home_folder(folder, place, tmp_path):
    command = hosts(tmp_path, {"one": "0"}, folder)
    (tmp_path / place).mkdir(exist_ok=True)
    for name in ("plan", "train.py"):
        (tmp_path / "one" / name).rename(tmp_path / place / name)
    (tmp_path / place / "waits").touch()
    with training(tmp_path, command, HOME=str(tmp_path)) as process:
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 75
    assert (tmp_path / place / "told").read_text().count("--process=0") == 1


def test_what_is_left_on_a_host_is_stopped_first_and_nothing_else(tmp_path):
    command = hosts(tmp_path, {"one": "0"})
    (tmp_path / "one/waits").touch()
    with subprocess.Popen(["sleep", "60"]) as other:
        (tmp_path / "one/run.one.pid").write_text(str(other.pid))  # of a training long ago
        with training(tmp_path, command) as process:
            assert other.poll() is None
            process.send_signal(signal.SIGTERM)  # it tells its host, which saves
            said = process.stdout.read()
        assert process.returncode == 75 and "kill -TERM" in said and ALIVE in said
        assert other.poll() is None
        other.kill()
    assert (tmp_path / "one/told").read_text().count("--process=0") == 1


def test_what_was_told_to_stop_is_not_started_again_where_its_connection_is_cut(tmp_path):
    command = hosts(tmp_path, {"one": "0"})
    (tmp_path / "one/waits").touch()
    (tmp_path / "one/cut").touch()
    with training(tmp_path, command) as process:
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 255
    assert (tmp_path / "one/told").read_text().count("--process=0") == 1


def test_a_host_that_is_not_reached_leaves_the_stop_to_the_next_one_or_to_the_next_signal(tmp_path):
    command = hosts(tmp_path, {"one": "75", "two": "75"})
    for name in ("one", "two"):
        (tmp_path / name / "waits").touch()
        (tmp_path / name / "unreached").touch()
    with training(tmp_path, command) as process:
        process.send_signal(signal.SIGINT)
        read_until(process, "no host was told to stop")
        (tmp_path / "two/unreached").unlink()
        process.send_signal(signal.SIGINT)
        while (tmp_path / "two/waits").exists():
            assert process.poll() is None
            time.sleep(0.02)
        (tmp_path / "one/waits").unlink()  # the other tells it
        process.stdout.read()
    assert process.returncode == 75
    assert (tmp_path / "two/told").read_text().count("--process=1") == 1


def test_hosts_of_a_dry_run_are_not_asked(tmp_path):
    command = hosts(tmp_path, {"one": "0", "two": "0"})
    command.insert(2, "--dry-run")
    done = script(tmp_path, *command)
    assert done.returncode == 0 and done.stdout.count("$ ssh ") == 2
    assert done.stdout.count(ALIVE) == 2  # a machine that is gone without a word ends its ssh
    assert not (tmp_path / "one/told").exists()


RECORD = """
import os, pathlib, sys
with open(os.environ["PLACE"] + "/calls", "a") as file:
    print(pathlib.Path(sys.argv[0]).name, *sys.argv[1:], file=file)
"""
# srun of a task for each folder. If a file says so it is told to stop: its first process, or all.
SRUN = f"""{RECORD}
import signal, subprocess
place = pathlib.Path(os.environ["PLACE"])
words = sys.argv[sys.argv.index("--kill-on-bad-exit=0") + 1 :]
pipes = {{"stdout": subprocess.PIPE, "text": True, "start_new_session": True}}
tasks = [subprocess.Popen(words, cwd=path, **pipes) for path in sorted(place.glob("task*"))]
stops = (place / "task0/waits").exists()
for task in tasks:
    assert task.stdout.readline() == "training\\n"
    if stops:
        (os.killpg if os.environ["TOLD"] == "all" else os.kill)(task.pid, signal.SIGTERM)
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


# This Python, by another name.
PYTHON = """
import os, sys
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def slurm(place: Path, plans: list[str], **environment: str) -> subprocess.CompletedProcess:
    """A job whose tasks end as planned."""
    write_program(place / "bin", "srun", SRUN)
    write_program(place / "bin", "scontrol", RECORD)
    for index, plan in enumerate(plans):
        folder = place / f"task{index}"
        write_program(folder / ".venv" / "bin", "python", PYTHON)
        (folder / "train.py").write_text(TRAIN)
        (folder / "scripts").symlink_to(SCRIPTS)
        (folder / "plan").write_text(plan)
    return script(place, "bash", str(SCRIPTS / "slurm.sh"), *ON_HOSTS, **environment)


@pytest.mark.parametrize(
    ("plans", "code"),
    [
        (["0", "0"], 0),
        (["75", "75"], 75),
        (["2", "75"], 2),  # one that fails ends the others
        (["75", "1", "75"], 1),
        (["75", "137"], 137),  # killed
    ],
)
def test_a_job_of_slurm_is_put_back_into_the_queue_where_it_was_interrupted(plans, code, tmp_path):
    done = slurm(tmp_path, plans, SLURM_JOB_ID="7")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == code, done.stderr
    assert calls[0].startswith("srun ") and calls[1:] == ["scontrol requeue 7"] * (code == 75)
    assert done.stderr == (f"the run ended with {code}\n" if code not in (0, 75) else "")
    for index in range(len(plans)):
        told = (tmp_path / f"task{index}" / "told").read_text()
        assert told == " ".join(("--distributed", *ON_HOSTS)) + "\n"


@pytest.mark.parametrize("told", ["first", "all"])
def test_a_job_of_slurm_that_is_told_to_stop_waits_for_what_saves(told, tmp_path):
    for index in range(2):
        (tmp_path / f"task{index}").mkdir()
        (tmp_path / f"task{index}" / "waits").touch()
    done = slurm(tmp_path, ["", ""], SLURM_JOB_ID="7", TOLD=told)
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "calls").read_text().endswith("scontrol requeue 7\n")


def test_a_task_that_is_told_together_with_its_program_ends_with_its_code_each_time(tmp_path):
    """A shell that hands a signal on and waits again has another code of its child now and then."""
    (tmp_path / "train.py").write_text(TRAIN)
    words = [sys.executable, str(SCRIPTS / "task.py"), "train.py"]
    pipe = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    codes = []
    for _ in range(40):
        (tmp_path / "waits").touch()
        with subprocess.Popen(words, cwd=tmp_path, **pipe) as task:
            assert task.stdout.readline() == "training\n"
            os.killpg(task.pid, signal.SIGTERM)
            codes.append(task.wait(timeout=60))
    assert codes == [75] * 40


@pytest.mark.parametrize(("count", "most", "again"), [("2", "3", True), ("3", "3", False)])
def test_a_job_of_slurm_is_not_put_back_for_ever(count, most, again, tmp_path):
    restarts = {"SLURM_RESTART_COUNT": count, "RESTARTS": most}
    done = slurm(tmp_path, ["75"], SLURM_JOB_ID="7", **restarts)
    assert done.returncode == 75
    assert ("scontrol" in (tmp_path / "calls").read_text()) == again
    assert len(done.stderr.splitlines()) == (0 if again else 1)
    assert ("not put back into the queue" in done.stderr) == (not again)


def test_a_job_of_slurm_says_its_command_and_asks_for_flags(tmp_path):
    done = slurm(tmp_path, [], DRY_RUN="1")
    assert done.returncode == 0 and done.stdout.startswith("$ srun ")
    assert not (tmp_path / "calls").exists()
    assert script(tmp_path, "bash", str(SCRIPTS / "slurm.sh")).returncode == 2


def test_shell_scripts_are_clean():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, *SCRIPTS.glob("*.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
