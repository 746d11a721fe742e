"""A sandbox reaches neither the host, nor its neighbours, nor link-local metadata services.

Every test first proves that its target can be reached by someone: a target that nobody can reach proves nothing.
"""

import ipaddress
import json
import os
import socket
import subprocess
import threading
from contextlib import contextmanager

import pytest

from support import port, start_counter, wait_for

# Tries all targets at once and prints those that answered, as JSON.
PROBE = """
import json, socket, sys, threading
reached = []
def attempt(host, port):
    try:
        with socket.create_connection((host, port), timeout=5):
            reached.append([host, port])
    except OSError:
        pass
threads = [threading.Thread(target=attempt, args=(h, p)) for h, p in json.loads(sys.argv[1])]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps(reached))
"""


def reached_from(sandbox, targets: list[tuple[str, int]]) -> list[tuple[str, int]]:
    sandbox.files.write("/home/user/probe.py", PROBE)
    result = sandbox.commands.run(f"python3 probe.py '{json.dumps(targets)}'", timeout=120)
    return [tuple(target) for target in json.loads(result.stdout)]


def addresses() -> list[ipaddress.IPv4Interface]:
    links = json.loads(subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True).stdout)
    return [
        ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}")
        for link in links
        for address in link["addr_info"]
    ]


@contextmanager
def listener(address: str = "0.0.0.0"):
    """Something to reach on this host; yields its port."""
    with socket.create_server((address, 0), backlog=64) as server:
        stop = threading.Event()
        server.settimeout(0.2)

        def serve():
            while not stop.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            serving.join()


def reachable_here(address: str, number: int) -> bool:
    try:
        with socket.create_connection((address, number), timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.owns_server
def test_no_address_of_the_host_is_reachable_from_a_sandbox(server, sandbox):
    with listener() as number:
        hosts = {str(interface.ip) for interface in addresses()}
        assert all(reachable_here(host, number) for host in hosts), "the listener should be reachable from the host"
        targets = [(host, n) for host in hosts | {"10.11.0.1"} for n in (number, server.port)]
        # The sandbox's own loopback is its own; it has nothing on these ports.
        assert reached_from(sandbox, targets) == []


def test_a_neighbour_is_not_reachable(sandboxes):
    neighbour, sandbox = sandboxes(), sandboxes()
    start_counter(neighbour)
    assert port(neighbour.sandbox_id, 8000).status == 200
    # The near ends of the sandboxes' links are addresses of this host; the far ends are beside them.
    pool = ipaddress.IPv4Network("10.201.0.0/16")
    links = [i.network for i in addresses() if i.ip in pool and i.network.prefixlen >= 24]
    around = {str(host) for network in links for host in network}
    assert reached_from(sandbox, [(host, 8000) for host in around | {"10.11.0.1", "10.11.0.2"}]) == []


@pytest.mark.owns_server
def test_link_local_addresses_are_not_reachable(server, sandbox):
    # Stands in for a cloud's metadata service: an address of that range that does answer on this host.
    address = "169.254.77.77"
    subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        with listener(address) as number:
            assert reachable_here(address, number)
            assert reached_from(sandbox, [(address, number)]) == []
    finally:
        subprocess.run(["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True)


def test_root_in_the_sandbox_cannot_talk_its_way_out(sandbox):
    # Another source address or route inside the guest changes nothing outside it.
    with listener() as number:
        host = next(str(i.ip) for i in addresses() if not i.ip.is_loopback)
        assert reachable_here(host, number)
        sandbox.commands.run(
            "ip addr add 10.201.0.1/16 dev eth0; ip addr add 127.0.0.2/8 dev eth0; "
            "ip route replace default via 10.11.0.1; true",
            user="root",
        )
        assert sandbox.is_running()
        assert reached_from(sandbox, [(host, number)]) == []


def test_every_sandbox_has_the_same_address_inside(sandboxes):
    seen = [made.commands.run("hostname -I").stdout.split() for made in (sandboxes(), sandboxes())]
    assert seen == [["10.11.0.2"], ["10.11.0.2"]]


@pytest.mark.owns_server
def test_machines_run_without_privileges(server, sandbox):
    """No QEMU of this server runs as root, with a capability, or in the host's network."""
    machines = []

    def find():
        machines.clear()
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/comm") as comm, open(f"/proc/{name}/cmdline", "rb") as cmdline:
                    if comm.read().startswith("qemu-system"):
                        machines.append((int(name), cmdline.read().decode(errors="replace")))
            except OSError:
                continue
        return machines

    wait_for(find, "a machine")
    host = os.readlink("/proc/self/ns/net")
    for pid, command in machines:
        try:
            with open(f"/proc/{pid}/status") as status:
                facts = dict(line.split(":", 1) for line in status if ":" in line)
            network = os.readlink(f"/proc/{pid}/ns/net")
        except OSError:  # it ended meanwhile
            continue
        assert "0" not in facts["Uid"].split(), f"pid {pid} runs as root: {command}"
        assert int(facts["CapEff"], 16) == 0, f"pid {pid} has capabilities"
        assert facts["NoNewPrivs"].strip() == "1", f"pid {pid} may gain privileges"
        assert facts["Seccomp"].strip() == "2", f"pid {pid} has no system-call filter"
        assert network != host, f"pid {pid} is in the host's network"
