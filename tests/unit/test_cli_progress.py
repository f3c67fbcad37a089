"""Progress is honest, and silent where nobody watches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casstore_cli.progress import Meter, duration


def test_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("Uploading") as meter:
        meter.expect(2, 100)
        meter.listed()
        meter.advance(100, new=50)
        meter.file_done(b"a")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (meter.size, meter.new, meter.files) == (100, 50, 1)


def test_no_share_before_the_total_is_known() -> None:
    meter = Meter("Uploading", draw=False)
    meter.expect(4, 4096)
    meter.advance(1024)
    line = meter.line(1e9)
    assert "listing" in line
    assert "%" not in line
    assert "left" not in line
    meter.listed()
    line = meter.line(1e9)
    assert " 25%" in line
    assert "1.0 KiB of 4.0 KiB" in line
    assert "left" in line


def test_line_goes_away_and_names_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def work() -> None:
        with Meter("Uploading", draw=True) as meter:
            meter.expect(1, 5)
            meter.listed()
            meter._drawn_at = 0.0
            meter.file_done(b"d/evil\x1b[2J")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    shown = capsys.readouterr().err
    assert "evil\\x1b[2J" in shown
    assert shown.endswith("\r\x1b[K")


def test_redraws_are_rare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("casstore_cli.progress.time.monotonic", lambda: clock[0])
    with Meter("Uploading", draw=True) as meter:
        meter.expect(1, 1000)
        for _ in range(1000):
            clock[0] += 0.001
            meter.advance(1)
    assert capsys.readouterr().err.count("Uploading") <= 11


def test_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("Uploading", draw=False) as meter:
        meter.warn("skipped a\nb")
    assert capsys.readouterr().err == "WARNING: skipped a\\nb\n"


def test_benchmark(tmp_path: Path) -> None:
    meter = Meter("Uploading", draw=False)
    meter.advance(1000)
    meter.file_done(b"a")
    meter.write_benchmark(str(tmp_path / "new/dir"), "x.json", files=1, transferred=400)
    report = json.loads((tmp_path / "new/dir/x.json").read_text())
    assert set(report) == {
        "start_time_ms",
        "end_time_ms",
        "duration_ms",
        "average_mbps",
        "total_bytes_transferred",
        "total_number_of_files",
    }
    assert report["total_bytes_transferred"] == 400
    assert report["total_number_of_files"] == 1
    assert report["start_time_ms"] <= report["end_time_ms"]
    meter.write_benchmark(None, "x.json", files=0, transferred=0)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (-1, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11400, "3 h 10 min")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
