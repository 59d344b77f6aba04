"""Metrics of client mode."""

from __future__ import annotations

from tlsproxy.connector.counted import Counted
from tlsproxy.metrics.prometheus import exposition
from tlsproxy.snapshot.lifetimes import Lifetime


def test_a_ca_with_its_next_key_is_one_series() -> None:
    """Prometheus refuses an exposition that has a series twice."""
    ends = [
        Lifetime("server_ca", "CN=ca", "ca.pem", "serial 1", 100.0, 300.0, "old"),
        Lifetime("server_ca", "CN=ca", "ca.pem", "serial 2", 200.0, 400.0, "new"),
        Lifetime("client", "CN=web-1", "client.pem", "serial 3", 210.0, 310.0, "leaf"),
    ]
    text = exposition(Counted(list, lambda: ends).series()).decode()
    told = {line for line in text.splitlines() if line.startswith("tlsproxy_expiry_")}
    assert told == {
        'tlsproxy_expiry_timestamp_seconds{kind="server_ca",name="CN=ca"} 300.0',
        'tlsproxy_expiry_start_timestamp_seconds{kind="server_ca",name="CN=ca"} 100.0',
        'tlsproxy_expiry_timestamp_seconds{kind="client",name="CN=web-1"} 310.0',
        'tlsproxy_expiry_start_timestamp_seconds{kind="client",name="CN=web-1"} 210.0',
    }
    assert len([line for line in text.splitlines() if line.startswith("tlsproxy_expiry_")]) == len(told)
