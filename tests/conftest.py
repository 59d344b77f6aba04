from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from hypothesis import Phase, settings, strategies
from support import forked
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.site import Site
from support.upstream import ScriptedUpstream

import tlsproxy
from tlsproxy.form import form

# As many as for the mutants, which they kill; the fuzz form has the many.
settings.register_profile("brief", deadline=None, max_examples=15, derandomize=bool(os.environ.get("CI")))
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
# That a mutant fails is enough: nobody reads its smallest example.
_UNSHRUNK = (Phase.explicit, Phase.generate)
settings.register_profile("mutants", deadline=None, max_examples=15, derandomize=True, phases=_UNSHRUNK)
_profile = "fuzz" if os.environ.get("TLSPROXY_FUZZ") else "mutants" if os.environ.get("TLSPROXY_MUTANTS") else "brief"
settings.load_profile(_profile)


# Modules and test items are there for good: neither while they are made nor later need the collector look through them.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Each worker imports its share of the modules before it imports all, so that one of them compiles each.

    In a fresh checkout that takes longer than to import them: pytest rewrites their assertions.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    roots = [session.config.invocation_params.dir / each for each in session.config.args if worker]
    paths = [path for root in roots if root.is_dir() for path in sorted(root.rglob("test_*.py"))]
    if not worker:  # it waits for the workers, each of which would compute this table of Unicode for itself
        strategies.text().validate()
    for path in paths[int(worker.removeprefix("gw") or 0) :: int(workers)]:
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        with suppress(Exception, pytest.skip.Exception):  # then the collection meets it, and tells of it
            importlib.import_module(path.stem)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: most of an end-to-end test is waiting for another process."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything that a test needs is installed: a skip would hide that it is not."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report


def pytest_configure() -> None:
    """`make test-compiled` tests the compiled form, or nothing."""
    wanted = os.environ.get("TLSPROXY_FORM", form())
    if form() != wanted:
        raise pytest.UsageError(f"the {form()} form of tlsproxy is imported, not the {wanted} one: {tlsproxy.__file__}")


def pytest_unconfigure() -> None:
    forked.end()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Certificates and configuration files, in a directory of their own; shared, so never rewritten in place."""
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def own_site(tmp_path: Path) -> Site:
    """One that a test may change."""
    return Site(tmp_path)


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture
def gateway(site: Site, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """The usual gateway in front of the scripted upstream."""
    with Gateway(site.write_config(upstream.url)) as running:
        yield running


@pytest.fixture
def grpc_upstream() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture
def grpc_gateway(site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Iterator[Gateway]:
    """One that serves gRPC too, in front of the recording upstream."""
    with Gateway(site.write_config(upstream.url, grpc=grpc_upstream.url)) as running:
        yield running


@pytest.fixture(scope="module")
def shared_upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def shared_gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """The usual gateway, one for all tests of a file: none of them may change what the others meet."""
    with Gateway(site.write_config(shared_upstream.url)) as running:
        yield running


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Both loops that the gateway may run on."""
    with asyncio.Runner(loop_factory=request.param) as running:
        yield running
