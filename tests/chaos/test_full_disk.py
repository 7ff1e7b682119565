"""A disk that fills up in the middle of a run: one message that names it, then the run goes on."""

import json
import subprocess

import pytest

from tests.chaos.checks import check_manifest, check_paid, check_tables
from tests.chaos.driver import latest_run
from tests.chaos.world import HEADRACE, ROOT, environment

# The disk is there only for these processes, so all happens in one shell: the run that fills it,
# more space, the run that goes on, and a copy of what it left.
SCRIPT = """
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 99
{start} > {folder}/first.out 2> {folder}/first.told; echo $? > {folder}/first.code
ls {sink}/runs > {folder}/runs 2> {folder}/no-runs
mount -o remount,size=64m {disk}
run=$(head -n 1 {folder}/runs)
if [ -n "$run" ] && [ -e {sink}/runs/$run/run.json ]; then
  {headrace} run --resume $run --sink {sink} --json > {folder}/second.out 2> {folder}/second.told
else
  {start} > {folder}/second.out 2> {folder}/second.told
fi
echo $? > {folder}/second.code
cp -r {sink} {folder}/kept
"""


def fill(world, folder, size, *, disk, sink, state):
    """Run with a disk of so many kilobytes; return the words and codes of both attempts."""
    folder.mkdir(exist_ok=True)
    disk.mkdir()
    start = " ".join(world.start(str(sink)))
    script = SCRIPT.format(
        size=size, disk=disk, folder=folder, sink=sink, start=start, headrace=HEADRACE
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=ROOT, env=environment(state), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.*")}
    return texts | {"runs": (folder / "runs").read_text(encoding="utf-8")}


def check_filled(world, reference, folder, said, mark):
    first = " ".join(said["first.told"].split())
    assert said["first.code"].strip() == "1", first
    assert "Traceback" not in first
    assert first.count("error: ") == 1, first
    assert "No space left on device" in first
    assert str(folder / "disk") in first
    assert said["second.code"].strip() == "0", said["second.told"]
    check_manifest(json.loads(said["second.out"]), reference)
    check_tables(str(folder / "kept"), reference)
    check_paid(world.engine.paid(mark), reference, 1)
    assert latest_run(str(folder / "kept")) is not None


@pytest.mark.timeout(90)
@pytest.mark.parametrize("size", [200])
def test_run_goes_on_when_the_disk_of_its_sink_was_full(world, reference, tmp_path, size):
    mark, disk = world.engine.mark(), tmp_path / "disk"
    said = fill(world, tmp_path, size, disk=disk, sink=disk / "lake", state=tmp_path / "state")
    check_filled(world, reference, tmp_path, said, mark)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("size", [24, pytest.param(16, marks=pytest.mark.slow)])
def test_run_goes_on_when_the_disk_of_its_state_was_full(world, reference, tmp_path, size):
    mark, disk = world.engine.mark(), tmp_path / "disk"
    sink = tmp_path / "lake"
    said = fill(world, tmp_path, size, disk=disk, sink=sink, state=disk)
    check_filled(world, reference, tmp_path, said, mark)


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("size", range(140, 400, 20))
def test_run_goes_on_wherever_the_disk_of_its_sink_was_full(world, reference, tmp_path, size):
    mark, disk = world.engine.mark(), tmp_path / "disk"
    said = fill(world, tmp_path, size, disk=disk, sink=disk / "lake", state=tmp_path / "state")
    check_filled(world, reference, tmp_path, said, mark)
