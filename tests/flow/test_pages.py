"""The pages that users are told to open, seen in a real browser: what they show of a night, and what their buttons do to it."""

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
import pytest
from playwright.sync_api import Locator, Page, expect

from engine_assets.definitions import build_definitions
from engine_assets.partitions import AS_OF_TAG, COIN, RANGE_END_TAG, RANGE_START_TAG
from engine_assets.session import LAUNCHED_BY_TAG
from engine_resources.lock import night_lock
from pages_world import BROKEN, CHROMIUM, REAL, STAGES, Pages, broken_file, chromium, failed_night, pages_of, processes_of, wait_for
from small_world import SYNTHETIC, TIMEFRAMES, huracan, quickstart

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed: apt-get install chromium")]
AS_OF = "2023-07-01T02:00:00+00:00"
RED, GREEN = "--color-accent-red", "--color-accent-green"
LAUNCH = """mutation ($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
TERMINATE = """mutation ($ids: [String!]!) {
  terminateRuns(runIds: $ids, terminatePolicy: SAFE_TERMINATE) { ... on TerminateRunsResult { terminateRunResults { __typename } } }
}"""
DRY_RUN = """mutation ($selector: ScheduleSelector!, $at: Float) {
  scheduleDryRun(selectorData: $selector, timestamp: $at) {
    ... on DryRunInstigationTick { evaluationResult { error { message } skipReason runRequests { runKey tags { key value } } } }
  }
}"""
NIGHTLY = {"repositoryName": "__repository__", "repositoryLocationName": "huracan", "scheduleName": "nightly"}


@pytest.fixture(scope="module")
def pages(base):
    with pages_of(failed_night(base)) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def look(browser, base, request) -> Callable[[str], Page]:
    """Open an address in the test's own tab. Leaves a screenshot behind, and fails the test if anything beyond this machine was asked."""
    context, elsewhere = browser
    page = context.new_page()

    def open_page(url: str) -> Page:
        page.goto(url)
        return page

    yield open_page
    folder = base / "screenshots"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{re.sub(r'[^a-zA-Z0-9]+', '_', request.node.name)}.png")
    page.close()
    assert not elsewhere, "a page needs something that is not on this machine"


def dot(page: Page, partition: str) -> Locator:
    """The status dot beside a coin or a timeframe on a partitions page."""
    return page.locator(f"div[data-tooltip='{partition}'] + div").first


def test_a_taken_port_is_refused_before_anything_starts(good, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = huracan(replace(good, home=tmp_path / "home"), "ui", "--port", "0", "--mlflow-port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} cannot be used (Address already in use); choose another with --mlflow-port" in done.stderr


def test_a_run_whose_process_is_gone_is_failed_when_the_pages_start(pages):
    (dead,) = (run for run in pages.runs() if run["tags"].get("huracan/pid") == "999999.1")
    assert dead["status"] == "FAILURE"


def test_the_graph_shows_the_seven_stages_in_order(pages, look):
    page = look(f"{pages.dagster}/asset-groups")
    nodes = page.locator("svg foreignObject")
    expect(nodes).to_have_count(len(STAGES))
    places = [(node.bounding_box()["x"], node.text_content()) for node in nodes.all()]
    assert [re.match("[a-z]+", text).group() for _, text in sorted(places)] == list(STAGES)


def test_the_group_models_shows_a_model_per_regime(pages, look):
    page = look(f"{pages.dagster}/locations/huracan/asset-groups/models/list")
    for regime in ("TREND", "RANGE", "PANIC", "ILLIQUID"):
        expect(page.get_by_text(regime).first).to_be_visible()
    assert page.get_by_text("one LightGBM per regime").count() == 4


@pytest.mark.parametrize("asset", ["raw", "models/TREND", "champions"])
def test_the_partitions_page_shows_the_failed_coin_in_red_and_the_others_in_green(pages, look, asset):
    page = look(f"{pages.dagster}/assets/{asset}?view=partitions")
    expect(page.get_by_text(f"Failed ({len(TIMEFRAMES)})")).to_be_visible()
    expect(page.get_by_text(f"Materialized ({2 * len(TIMEFRAMES)})")).to_be_visible()
    for coin, colour in {BROKEN: RED, REAL: GREEN, SYNTHETIC: GREEN}.items():
        expect(dot(page, coin)).to_have_attribute("style", re.compile(re.escape(colour)))
    red, green, blue = map(int, re.findall(r"\d+", dot(page, BROKEN).evaluate("dot => getComputedStyle(dot).backgroundColor"))[:3])
    assert red > 2 * max(green, blue), "the colour is red indeed"


def test_a_partition_shows_what_became_of_it(pages, look):
    page = look(f"{pages.dagster}/assets/models/TREND?view=partitions&partition={SYNTHETIC}%7C1h")
    table = page.locator("table").last
    expect(table).to_contain_text("windows")
    expect(table).to_contain_text(re.compile(r"TREND\s*\d+ trades"))
    expect(table).not_to_contain_text("RANGE")


def test_a_partition_shows_its_verdicts(pages, look):
    page = look(f"{pages.dagster}/assets/champions?view=partitions&partition={SYNTHETIC}%7C1h")
    table = page.locator("table").last
    expect(table).to_contain_text("generation")
    for regime, state in pages.world.pointers()[SYNTHETIC].segments.items():
        if regime.startswith("1h."):
            expect(table).to_contain_text(re.compile(rf"{regime.removeprefix('1h.')}\s*{re.escape(state.state)}"))


def test_the_run_page_says_what_failed_why_and_what_to_do(pages, look):
    (night,) = (run for run in pages.runs() if run["tags"].get(LAUNCHED_BY_TAG) == "cli")
    assert (night["status"], night["tags"][AS_OF_TAG]) == ("FAILURE", AS_OF)
    page = look(f"{pages.dagster}/runs/{night['runId']}")
    expect(page.get_by_text("3 of 9 partitions failed; the others are done.").first).to_be_visible()
    failed = page.get_by_text("repeat on these pages").locator("xpath=ancestor::table[1]")
    expect(failed).to_contain_text(re.compile(rf"{BROKEN}\|1h.*{BROKEN}\.parquet is no whole parquet file", re.DOTALL))
    expect(failed).to_contain_text("Backfill only failed and missing partitions")


def test_the_schedule_runs_and_ticks_at_two(pages, look):
    query = """query ($selector: ScheduleSelector!) { scheduleOrError(scheduleSelector: $selector) { ... on Schedule {
        description scheduleState { status } futureTicks(limit: 2) { results { timestamp } } } } }"""
    schedule = pages.ask(query, selector=NIGHTLY)["scheduleOrError"]
    assert schedule["scheduleState"]["status"] == "RUNNING"
    assert schedule["description"]
    ticks = [datetime.fromtimestamp(tick["timestamp"], UTC) for tick in schedule["futureTicks"]["results"]]
    assert [f"{tick:%H:%M}" for tick in ticks] == ["02:00", "02:00"]
    page = look(f"{pages.dagster}/automation")
    expect(page.get_by_text("nightly", exact=True)).to_be_visible()
    expect(page.get_by_text("At 02:00 AM UTC")).to_be_visible()
    page.goto(f"{pages.dagster}/locations/huracan/schedules/nightly")
    expect(page.get_by_text("Next tick")).to_be_visible()
    expect(page.get_by_text(re.compile(r"2:00.*AM.*UTC")).first).to_be_visible()


def test_a_tick_asks_for_a_run_over_every_coin_as_of_the_clock_of_the_source(pages):
    tick = datetime(2026, 11, 22, 2, tzinfo=UTC)
    told = pages.ask(DRY_RUN, selector=NIGHTLY, at=tick.timestamp())["scheduleDryRun"]["evaluationResult"]
    assert told["error"] is None
    (request,) = told["runRequests"]
    tags = {tag["key"]: tag["value"] for tag in request["tags"]}
    assert tags[AS_OF_TAG] == AS_OF
    assert (tags[RANGE_START_TAG], tags[RANGE_END_TAG]) == (f"{REAL}|1h", f"{SYNTHETIC}|1d")
    assert request["runKey"] == tick.isoformat()


def test_coins_are_those_that_are_known_at_the_tick(pages):
    nightly = build_definitions(pages.world.settings()).resolve_schedule_def("nightly")
    with dg.instance_for_test() as instance:
        context = dg.build_schedule_context(instance, datetime(2023, 7, 1, 2, tzinfo=UTC))
        assert "no coins are known" in nightly.evaluate_tick(context).skip_message
        for coin in (REAL, SYNTHETIC):
            instance.add_dynamic_partitions(COIN, [coin])
            (request,) = nightly.evaluate_tick(context).run_requests
            assert (request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) == (f"{REAL}|1h", f"{coin}|1d")
            assert request.tags[AS_OF_TAG] == AS_OF


def test_mlflow_lists_a_model_per_coin_with_its_aliases(pages, look):
    page = look(f"{pages.mlflow}/#/models")
    for coin in (REAL, SYNTHETIC):
        row = page.get_by_role("row").filter(has_text=coin)
        expect(row).to_contain_text(re.compile(r"@\s(challenger|champion)"))
    assert page.get_by_text(BROKEN).count() == 0, "a coin without a night has no model"


def test_an_mlflow_model_says_what_it_is_and_shows_who_is_champion(pages, look):
    page = look(f"{pages.mlflow}/#/models/{SYNTHETIC}")
    for text in ("Versions are bundles", "@ champion", "@ challenger", "models: "):
        expect(page.get_by_text(text).first).to_be_visible()


def test_an_mlflow_version_leads_to_metrics_parameters_tags_and_the_plot_page(pages, look):
    page = look(f"{pages.mlflow}/#/models/{SYNTHETIC}/versions/1")
    expect(page.get_by_text("SYNTHETIC coin, never traded")).to_be_visible()
    for tag in ("data_hash", "recipe_hash", "code_version", "bundle_sha256"):
        expect(page.get_by_text(tag).first).to_be_visible()
    page.get_by_text(f"{SYNTHETIC} run_20230701_020000").first.click()
    for text in ("1h.TREND.sharpe", "1h.TREND.net_bps", "learning_rate", "recipe_hash", "SYNTHETIC coin, never traded"):
        expect(page.get_by_text(text).first).to_be_attached()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("plots").first.click()
    page.get_by_text("coin.svg").first.click()
    plot = page.locator("img[src^='blob:']").first
    expect(plot).to_be_visible()
    assert plot.evaluate("plot => plot.naturalWidth") > 500


def test_terminating_a_run_cancels_its_workers_and_frees_the_lock(pages):
    candles = broken_file(pages.world)
    candles.unlink()
    os.mkfifo(candles)  # reading it takes for ever
    tags = {"dagster/partition": f"{BROKEN}|1h", "dagster/partition/coin": BROKEN, "dagster/partition/timeframe": "1h"}
    params = {
        "mode": "default",
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        "runConfigData": "{}",
        "selector": {
            "repositoryLocationName": "huracan",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["raw"]}, {"path": ["features"]}],
        },
    }
    run_id = pages.ask(LAUNCH, params=params)["launchPipelineExecution"]["run"]["runId"]

    def reader() -> int | None:
        with suppress(OSError):  # no such device or address: nobody reads yet
            return os.open(candles, os.O_WRONLY | os.O_NONBLOCK)
        return None

    hold = wait_for("a worker that reads", 120, reader)
    try:
        assert any("ray::" in command for command in processes_of(pages.world).values())
        pages.ask(TERMINATE, ids=[run_id])
        assert pages.ended(run_id)["status"] == "CANCELED"
        wait_for("the end of the workers", 30, lambda: not any("ray" in command for command in processes_of(pages.world).values()))
        with night_lock(pages.world.home, "run_of_this_test"):
            pass
    finally:
        os.close(hold)
        candles.unlink()


@pytest.fixture
def repaired(pages) -> Pages:
    """The pages after somebody has replaced the bad file."""
    broken_file(pages.world).unlink(missing_ok=True)
    quickstart(BROKEN).write_parquet(broken_file(pages.world))
    return pages


def test_materialize_on_a_partitions_page_turns_the_repaired_partition_green(repaired, look):
    page = look(f"{repaired.dagster}/assets/raw?view=partitions&partition={BROKEN}%7C1h")
    expect(page.get_by_text("did not materialize this asset")).to_be_visible()
    page.get_by_role("button", name="Materialize").first.click()
    before = {run["runId"] for run in repaired.runs()}
    page.get_by_role("button", name="Launch").click()
    (run_id,) = wait_for("a run", 30, lambda: {run["runId"] for run in repaired.runs()} - before)
    ended = repaired.ended(run_id)
    assert (ended["status"], ended["tags"][AS_OF_TAG]) == ("SUCCESS", AS_OF), "a run without the tag says what it stood for"
    page.reload()
    expect(dot(page, "1h")).to_have_attribute("style", re.compile(re.escape(GREEN)))
    expect(page.get_by_text("new_bars")).to_be_visible()


def test_backfill_of_failed_partitions_only_turns_them_green(repaired, look):
    page = look(f"{repaired.dagster}/asset-groups")
    page.get_by_role("button", name="Materialize all").click()

    def choose_all() -> bool:  # a dimension is empty until its partitions have come
        for button in page.get_by_role("button", name="All", exact=True).all():
            button.click()
        return page.get_by_text("9 partitions", exact=True).count() > 0

    wait_for("all partitions in the dialog", 30, choose_all)
    page.get_by_text("Backfill only failed and missing partitions").click()
    before = {run["runId"] for run in repaired.runs()}
    page.get_by_role("button", name="Launch").click()
    (run_id,) = wait_for("the run of the backfill", 90, lambda: {run["runId"] for run in repaired.runs()} - before)
    run = repaired.ended(run_id)
    assert run["status"] == "SUCCESS"
    assert (run["tags"][RANGE_START_TAG], run["tags"][RANGE_END_TAG]) == (f"{BROKEN}|1h", f"{BROKEN}|1d"), "and no other coin"
    page.goto(f"{repaired.dagster}/assets/champions?view=partitions")
    expect(page.get_by_text("Failed (0)")).to_be_visible()
    expect(dot(page, BROKEN)).to_have_attribute("style", re.compile(re.escape(GREEN)))
    assert all(set(states.values()) == {"MATERIALIZED"} for states in repaired.world.partition_states().values())
    assert BROKEN in repaired.world.pointers(), "the repaired coin has its champion pointer"
