"""Names and addresses of the tasks of a group."""

from __future__ import annotations

import ipaddress
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the network of a group is made of Linux namespaces", allow_module_level=True)

from casstore_orchestrator.executors.network import MAX_TASKS, address_of, host_names, hosts_file


def test_addresses_are_distinct_and_in_one_network() -> None:
    network = ipaddress.ip_network("10.213.0.0/16")
    addresses = {ipaddress.ip_address(address_of(slot)) for slot in range(MAX_TASKS)}
    assert len(addresses) == MAX_TASKS
    assert addresses <= set(network.hosts())


def test_a_name_comes_in_the_forms_that_programs_make_of_it() -> None:
    assert host_names("Physics_Sim") == ("Physics_Sim", "physics_sim", "physics-sim")
    assert host_names("policy") == ("policy",)


def test_an_exact_name_wins_over_the_variant_of_another() -> None:
    text = hosts_file(["a_b", "a-b"], ["10.213.0.2", "10.213.0.3"]).decode()
    assert "10.213.0.2 a_b\n" in text
    assert "10.213.0.3 a-b\n" in text
    assert text.startswith("127.0.0.1 localhost\n")


def test_of_two_tasks_with_the_same_variant_the_first_has_it() -> None:
    text = hosts_file(["X_1", "x_1"], ["10.213.0.2", "10.213.0.3"]).decode()
    assert text.count(" x_1") == 1
    assert "10.213.0.2 X_1 x-1\n" in text
