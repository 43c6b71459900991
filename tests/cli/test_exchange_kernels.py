"""The kernel of exchanges through the command line."""

import json

import pytest

from tests.cli.conftest import Command

KERNELS = ("alpha-beta", "nccl", "deepep-low-latency", "deepep-normal")


@pytest.mark.slow
def test_kernels_differ_and_name_their_source(moesim: Command) -> None:
    step_s = {}
    for kernel in KERNELS:
        done = moesim("run", "tiny.yaml", "--set", f"schedule.exchange.kernel={kernel}", "--json", "-").succeeded()
        result = json.loads(done.out)
        step_s[kernel] = result["results"][0]["metrics"]["step_time_s"]
        of_link = [constant for constant in result["constants"] if constant["name"].startswith("nvlink-4")]
        fitted = [constant["source"] for constant in of_link if "fitted on" in constant["source"]]
        assert bool(fitted) == (kernel != "alpha-beta")
    assert len(set(step_s.values())) == len(KERNELS)
    assert step_s["deepep-low-latency"] < step_s["deepep-normal"]  # a few tokens a device


def test_a_kernel_of_other_links_is_refused(moesim: Command) -> None:
    done = moesim("run", "tiny.yaml", "--set", "schedule.exchange.kernel=nvl72-two-sided")
    done.refused(2, "kernel nvl72-two-sided was not measured on link nvlink-4, only on nvlink-5-nvl72")


def test_options_that_contradict_each_other_have_a_line(moesim: Command) -> None:
    done = moesim("run", "tiny.yaml", "--set", "schedule.exchange={kernel: deepep-low-latency, dedup: node}")
    done.refused(2, "kernel deepep-low-latency has dedup none, not node")
