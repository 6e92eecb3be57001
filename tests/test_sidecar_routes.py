"""What the sidecar answers over HTTP, to whom, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_tables import Sidecar, over, told, written

from loadgen import clock
from loadgen.sidecar.events import EventLog
from loadgen.sidecar.table import boot_id


def test_samples_are_what_was_written(tmp_path: Path) -> None:
    start_s = written(tmp_path, 7)

    async def call(sidecar: Sidecar) -> None:
        status, said = await sidecar.get("/v1/samples/power")
        assert status == 200
        assert (said["table"], said["first_seq"], said["last_seq"]) == ("power", 1, 7)
        assert said["columns"] == ["gpu0", "gpu1"]
        for i, (seq, t_s, values, lags) in enumerate(said["rows"]):
            assert seq == i + 1 and t_s == pytest.approx(start_s + 0.05 * i, abs=1e-9)
            assert values == [100.0 * i, 100.0 * i + 1 if i % 3 else None]
            assert lags[0] == 0.0 and (values[1] is None or lags[1] == pytest.approx(0.001, abs=1e-7))
        assert len(said["rows"]) == 7
        for query, seqs in {
            "after=5": [6, 7],
            "after=7": [],
            "limit=2": [1, 2],
            "after=2&limit=2": [3, 4],
            f"since={start_s + 0.12!r}": [4, 5, 6, 7],
            f"until={start_s + 0.12!r}": [1, 2, 3],
            f"since={start_s + 0.06!r}&until={start_s + 0.16!r}": [3, 4],
        }.items():
            _, part = await sidecar.get(f"/v1/samples/power?{query}")
            assert [row[0] for row in part["rows"]] == seqs, query
        assert (await sidecar.get("/v1/samples/metrics"))[1]["rows"] == []

    over(tmp_path, call)


def test_pages_joined_are_the_whole(tmp_path: Path) -> None:
    written(tmp_path, 250, columns=3)

    async def call(sidecar: Sidecar) -> None:
        _, whole = await sidecar.get("/v1/samples/power?limit=10000")
        joined: list[Any] = []
        while True:
            after = joined[-1][0] if joined else 0
            _, page = await sidecar.get(f"/v1/samples/power?limit=101&after={after}")
            if not page["rows"]:
                break
            joined += page["rows"]
        assert joined == whole["rows"] and [row[0] for row in joined] == list(range(1, 251))

    over(tmp_path, call)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/samples/power?limit=0", 400, "limit: expected a whole number from 1 to 10000, got '0'"),
        ("/v1/samples/power?limit=10001", 400, "got '10001'"),
        ("/v1/samples/power?limit=1.5", 400, "got '1.5'"),
        ("/v1/samples/power?after=-1", 400, "after: expected a whole number"),
        ("/v1/samples/power?after=" + "9" * 5000, 400, "after: expected a whole number"),
        ("/v1/samples/power?since=now", 400, "since: expected seconds on the sidecar's clock"),
        ("/v1/samples/power?until=nan", 400, "until: expected seconds"),
        ("/v1/samples/power?form=1", 400, "unknown parameter 'form': expected one of after, since"),
        ("/v1/samples/power?limit=1&limit=2", 400, "limit: expected once"),
        ("/v1/samples/pwer", 404, "no table 'pwer': expected one of power, state, metrics"),
        ("/v1/samples/..%2fid", 404, "no table"),
        ("/v1/live/pwer", 404, "no table"),
        ("/v1/live/power?after=x", 400, "after: expected"),
        ("/v1/events?after=x", 400, "after: expected"),
        ("/v1/server", 400, "expected port=P"),
        ("/v1/server?port=0", 400, "port: expected a whole number from 1 to 65535"),
        ("/v1/info?x=1", 400, "unknown parameter 'x': expected none"),
        ("/v2/info", 404, "nothing is at '/v2/info'"),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, path: str, status: int, said: str) -> None:
    async def call(sidecar: Sidecar) -> None:
        answered, body = await sidecar.get(path)
        assert answered == status and list(body) == ["error"] and said in body["error"]
        assert len(body["error"]) < 300

    over(tmp_path, call)


def test_only_get(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.post(sidecar.url + "/v1/clock", data=b"x") as answer:
            assert answer.status == 405 and answer.headers["Allow"] == "GET,HEAD"
            assert "error" in await answer.json()

    over(tmp_path, call)


def test_a_token_is_asked_for_everywhere_but_health_and_the_page(tmp_path: Path) -> None:
    written(tmp_path, 3)
    paths = (
        "/v1/clock",
        "/v1/info",
        "/v1/samples/power",
        "/v1/live/power",
        "/v1/events",
        "/metrics",
        "/v1/no",
    )

    async def call(sidecar: Sidecar) -> None:
        for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"},
                      {"Authorization": "s3cret"}, {"Authorization": "Bearer sécret"}):  # fmt: skip
            for path in paths:
                status, said = await sidecar.get(path, **wrong)
                assert status == 401 and "Authorization: Bearer TOKEN" in said["error"]
        for right in ("Bearer s3cret", "bearer s3cret"):
            assert (await sidecar.get("/v1/clock", Authorization=right))[0] == 200
        assert (await sidecar.get("/health"))[0] == 200
        status, page = await sidecar.get("/")
        assert status == 200 and "s3cret" not in page
        # With a token the sidecar may have any name.
        assert (await sidecar.get("/health", Host="gpu-host:9400"))[0] == 200

    over(tmp_path, call, token="s3cret")


def test_without_a_token_another_name_for_this_host_is_refused(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        for host in ("evil.example", "evil.example:9400", "192.0.2.7:9400", "127.0.0.1.evil.example"):
            status, said = await sidecar.get("/v1/clock", Host=host)
            assert status == 400 and "Host header" in said["error"]
        for host in ("localhost", "localhost:9400", "[::1]:9400", "[::1]", "127.0.0.1"):
            assert (await sidecar.get("/v1/clock", Host=host))[0] == 200

    over(tmp_path, call)


def test_the_clock_is_within_its_exchange(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        widths = []
        for _ in range(30):
            before_s = clock.now()
            _, said = await sidecar.get("/v1/clock")
            after_s = clock.now()
            assert before_s <= said["t_s"] <= after_s and said["boot_id"] == boot_id()
            widths.append(after_s - before_s)
        assert min(widths) < 0.01  # or no bound of 10 ms could hold

    over(tmp_path, call)


def test_health(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        status, said = await sidecar.get("/health")
        assert (status, said["status"], said["age_s"]) == (503, "starting", None)
        written(tmp_path, 3, end_s=clock.now() - 100)  # of an earlier start
        assert (await sidecar.get("/health"))[1]["status"] == "starting"
        written(tmp_path, 3, end_s=clock.now() - 3)
        sidecar.sampling.trouble = "the sampler was killed"
        status, said = await sidecar.get("/health")
        assert (status, said["status"]) == (503, "stale") and said["age_s"] == pytest.approx(3, abs=0.5)
        assert "expected at most 1 s: the sampler was killed" in said["reason"]
        written(tmp_path, 3)
        status, said = await sidecar.get("/health")
        assert (status, said["status"]) == (200, "ok") and 0 <= said["age_s"] < 1

    over(tmp_path, call)


def test_info(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        _, said = await sidecar.get("/v1/info")
        assert (
            said["schema"] == 1 and said["domains"] == [] and said["session"] is None and said["pids"] is None
        )
        first = said["id"]
        written(tmp_path, 5)
        domains = [{"name": "gpu0", "method": "counter", "averaging_s": None, "note": "", "update_s": 0.1}]
        told(tmp_path, session="abc", domains=domains, reasons={"gpu": None}, warnings=["w"], pid=1)
        sidecar.sampling.trouble = "the sampler was killed"
        _, said = await sidecar.get("/v1/info")
        assert said["id"] == first and said["session"] == "abc" and said["domains"] == domains
        assert said["warnings"] == ["w", "the sampler was killed"] and said["interval_s"] == 0.05
        assert said["tables"]["power"] == {
            "columns": ["gpu0", "gpu1"],
            "first_seq": 1,
            "last_seq": 5,
            "interval_s": 0.05,
        }
        assert said["host"]["cpus"] >= 1
        (tmp_path / "sampler.json").write_text("{")  # never so, since it is replaced; still no reason to fail
        assert (await sidecar.get("/v1/info"))[0] == 200

    over(tmp_path, call)


def test_events_page_by_number(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for i in range(10):
        log.add("kind", f"event {i}")

    async def call(sidecar: Sidecar) -> None:
        _, said = await sidecar.get("/v1/events")
        assert [event["text"] for event in said["events"]] == [f"event {i}" for i in range(10)]
        _, said = await sidecar.get("/v1/events?after=7&limit=2")
        assert [event["seq"] for event in said["events"]] == [8, 9]

    over(tmp_path, call)


def test_metrics_are_absent_when_old_or_missing(tmp_path: Path) -> None:
    domains = [{"name": name, "method": "counter", "note": ""} for name in ("gpu0", "gpu1")]
    told(tmp_path, domains=domains, boards=[{"domain": "gpu0", "uuid": "U"}], overhead={}, reasons={})

    def energies(page: str) -> dict[str, float]:
        return {
            sample.labels["index"]: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "loadgen_gpu_energy_joules_total"
        }

    async def call(sidecar: Sidecar) -> None:
        assert energies((await sidecar.get("/metrics"))[1]) == {}
        written(tmp_path, 2, end_s=clock.now() - 10)
        assert energies((await sidecar.get("/metrics"))[1]) == {}
        written(tmp_path, 2)
        assert energies((await sidecar.get("/metrics"))[1]) == {"0": 100.0, "1": 101.0}
        written(tmp_path, 1)  # in whose only row gpu1 is missing
        assert energies((await sidecar.get("/metrics"))[1]) == {"0": 0.0}

    over(tmp_path, call)


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.get(sidecar.url + "/") as answer:
            page = await answer.text()
            assert (
                answer.content_type == "text/html"
                and "default-src 'none'" in answer.headers["Content-Security-Policy"]
            )
        assert "v1/live/power" in page and "src=" not in page and "href=" not in page
        assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 0
        assert len(page.splitlines()) < 110

    over(tmp_path, call)
