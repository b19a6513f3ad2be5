"""The interface by which workers of two nodes meet."""

from __future__ import annotations

import os

import pytest

from raybench.cluster import network

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def _none_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set here goes with the test
        monkeypatch.delenv(name)


def chosen(monkeypatch: pytest.MonkeyPatch, address: str) -> list[str | None]:
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: address)
    network.choose_interface()
    return [os.environ.get(name) for name in NAMES]


def test_it_is_that_of_the_nodes_own_address(monkeypatch):
    assert chosen(monkeypatch, "127.0.0.1") == ["lo", "=lo"]


@pytest.mark.parametrize("address", ["203.0.113.77", "fd00::1"])
def test_an_unknown_address_chooses_none(monkeypatch, address):
    assert chosen(monkeypatch, address) == [None, None]


def test_the_users_choice_stays(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "ib0")
        assert "ib0" in chosen(monkeypatch, "127.0.0.1")
        monkeypatch.delenv(name)
