"""A Ray cluster on this machine, and the death of one of its nodes."""

import contextlib

import psutil
import pytest


@contextlib.contextmanager
def two_nodes(monkeypatch):
    """Yields a cluster whose head runs no jobs, with two nodes of one core in its list `two`."""
    pytest.importorskip("ray", reason="Ray is not installed, or does not exist for this Python")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other processes of the machine may use all memory
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.two = [found.add_node(num_cpus=1) for _ in range(2)]
    try:
        yield found
    finally:
        found.shutdown()


def kill_node(nodes, node, is_busy):
    """Kills all processes of a node at once, so that nothing of it can save.

    Args:
      nodes: the cluster.
      node: one of its nodes.
      is_busy: whether a process of the node does a job.
    """
    machine = psutil.Process(node.all_processes["raylet"][0].process.pid)
    processes = [machine, *machine.children(recursive=True)]
    assert any(is_busy(process) for process in processes)
    for each in processes:
        each.kill()
    nodes.remove_node(node, allow_graceful=False)
