"""Kernel cards: which constants apply, where cards come from, and what every shipped card holds."""

from pathlib import Path

import pytest

from hwmodels.calibration.card import LARGEST_MEDIAN
from hwmodels.calibration.shipped import SHIPPED
from hwmodels.devices import Device
from hwmodels.fitted import Band, Fitted, Residuals
from hwmodels.gemm import gemm_s
from hwmodels.kernels import BLOCKS, KernelCard, Kernels, blocks_of
from hwmodels.library import find_device, find_kernels, list_cards
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from scenarios.errors import HardwareError, ScenarioError
from tests.devices import NO_LAUNCH, ORIGIN, kernel_card, roofline

CARDS = list_cards()
DEVICES = [card for card in CARDS.devices if "bf16" in card.peak_flop_per_s or "fp16" in card.peak_flop_per_s]


def numbered(number: int) -> Fitted:
    """A law that is known by its fixed time."""
    return roofline(f"{number} us")


def chain(*cards: dict[str, int]) -> Kernels:
    """Cards whose `moe` blocks are known by their numbers, each the base of the one before."""
    made = []
    for place, blocks in enumerate(cards):
        moe = {dtype: numbered(number) for dtype, number in blocks.items()}
        made.append(KernelCard.model_validate({"name": f"card {place}", "moe": moe}))
    return Kernels(cards=tuple(made))


def found(kernels: Kernels, dtype: str) -> int:
    law = kernels.moe(dtype)
    return round(law.fixed_s * 1e6)


class TestFind:
    def test_the_cards_own_constants_come_first(self) -> None:
        assert found(chain({"bf16": 1, "any": 2}, {"bf16": 3, "any": 4}), "bf16") == 1

    def test_a_base_that_has_the_data_type_comes_before_any(self) -> None:
        kernels = chain({"fp8": 1, "any": 2}, {"any": 3}, {"bf16": 4})
        assert found(kernels, "bf16") == 4
        assert found(kernels, "int4") == 2  # nobody has it: the nearest `any`

    def test_any_of_a_base_stands_in(self) -> None:
        assert found(chain({"fp8": 1}, {"any": 3}), "bf16") == 3

    def test_what_nobody_has_is_an_error_that_lists_what_there_is(self) -> None:
        with pytest.raises(HardwareError, match=r"card 0 has no constants of moe for bf16 \(it has fp8, int4; add"):
            chain({"fp8": 1}, {"int4": 3}).moe("bf16")
        with pytest.raises(HardwareError, match=r"no constants of mla_decode for fp8 \(name a base that has it\)"):
            chain({"fp8": 1}).mla_decode("fp8")

    def test_launch_is_that_of_the_nearest_card_that_has_one(self) -> None:
        first = KernelCard(name="first")
        second, third = (kernel_card(launch=NO_LAUNCH | ORIGIN | {"graph_s": f"{n} us"}) for n in (2, 3))
        assert Kernels(cards=(first, second, third)).launch().graph_s == pytest.approx(2e-6)
        with pytest.raises(HardwareError, match="first has no constants of launch, and no base"):
            Kernels(cards=(first,)).launch()


MOE = "{any: {law: roofline, fixed_s: 7 us, compute_frac: 1, memory_frac: 1, source: a test, kind: assumed}}"


class TestFiles:
    def test_a_file_is_relative_to_the_base_folder_and_rests_on_shipped_cards(self, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(f"kernels: [{{name: own, base: h200-trtllm, moe: {MOE}}}]")
        kernels = find_kernels("own.yaml", tmp_path)
        assert [card.name for card in kernels.cards] == ["own", "h200-trtllm", "datasheet-only"]
        # `any` of the file counts only where no card of the chain has the data type itself.
        assert kernels.moe("bf16") == find_kernels("h200-trtllm").moe("bf16")
        assert kernels.moe("int4").fixed_s == pytest.approx(7e-6)
        assert kernels.gemm("bf16") == find_kernels("h200-trtllm").gemm("bf16")

    def test_cards_of_the_file_come_before_shipped_ones(self, tmp_path: Path) -> None:
        text = f"kernels:\n- {{name: own, base: h200-vllm}}\n- {{name: h200-vllm, moe: {MOE}}}\n"
        (tmp_path / "own.yaml").write_text(text)
        kernels = find_kernels(str(tmp_path / "own.yaml"))
        assert [card.name for card in kernels.cards] == ["own", "h200-vllm"]
        assert found(kernels, "bf16") == 7

    def test_bases_must_not_go_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text("kernels: [{name: a, base: b}, {name: b, base: a}]")
        with pytest.raises(HardwareError, match="kernel card a: its bases go in a circle at a"):
            find_kernels("own.yaml", tmp_path)
        (tmp_path / "self.yaml").write_text("kernels: [{name: a, base: a}]")
        with pytest.raises(HardwareError, match="circle at a"):
            find_kernels("self.yaml", tmp_path)

    def test_bad_files_are_errors(self, tmp_path: Path) -> None:
        (tmp_path / "links.yaml").write_text("links: []")
        with pytest.raises(HardwareError, match=r"links\.yaml: holds no `kernels:` card"):
            find_kernels("links.yaml", tmp_path)
        (tmp_path / "base.yaml").write_text("kernels: [{name: a, base: h200-vlm}]")
        with pytest.raises(HardwareError, match=r"no kernel card 'h200-vlm' \(did you mean 'h200-vllm'"):
            find_kernels("base.yaml", tmp_path)
        with pytest.raises(ScenarioError, match=r"absent\.yaml: no such file"):
            find_kernels("absent.yaml", tmp_path)
        (tmp_path / "law.yaml").write_text(f"kernels: [{{name: a, moe: {MOE.replace('roofline', 'linear')}}}]")
        with pytest.raises(ScenarioError, match=r"law\.yaml:1 kernels\.0\.moe\.any.*linear"):
            find_kernels("law.yaml", tmp_path)
        (tmp_path / "frac.yaml").write_text(
            f"kernels: [{{name: a, moe: {MOE.replace('memory_frac: 1', 'memory_frac: 1.5')}}}]"
        )
        with pytest.raises(ScenarioError, match=r"memory_frac: must be at most 1, got 1\.5"):
            find_kernels("frac.yaml", tmp_path)


def test_a_block_states_the_band_of_its_residuals_before_an_assumed_one() -> None:
    law = roofline()
    assert law.low_high == (1.0, 1.0)
    assumed = law.model_copy(update={"band": Band(low=0.5, high=2.0, source="a test")})
    assert assumed.low_high == (0.5, 2.0)
    errors = {"n": 9, "mean_ape": 0.1, "median_ape": 0.1, "p90_ape": 0.2, "bias": 0.0}
    measured = assumed.model_copy(update={"residuals": Residuals(**errors, low=0.9, high=1.2)})
    assert measured.low_high == (0.9, 1.2)
    with pytest.raises(ValueError, match=r"low 1\.2 exceeds high 0\.9"):
        Residuals(**errors, low=1.2, high=0.9)


@pytest.mark.parametrize("card", CARDS.kernels, ids=lambda card: card.name)
class TestShipped:
    def test_its_chain_prices_every_operation(self, card: KernelCard) -> None:
        kernels = find_kernels(card.name)
        assert kernels.name == card.name
        for block in BLOCKS:
            for dtype in ("bf16", "fp8", "fp8_block", "int4", "mxfp4", "nvfp4"):
                assert kernels.find(block, dtype).source
        if card.name != "zen4-core-torch":  # on a CPU the call is part of the kernel's own time
            assert kernels.launch().eager_kernel_s >= kernels.launch().kernel_s

    def test_every_block_says_how_far_it_is_off(self, card: KernelCard) -> None:
        for name, law in blocks_of(card):
            assert len(law.source) >= 10, name
            assert (law.residuals or law.band) or card.name == "ideal", name
            low, high = law.low_high
            assert low <= 1 <= high, name

    def test_fitted_blocks_name_their_table_and_are_worth_shipping(self, card: KernelCard) -> None:
        for name, law in blocks_of(card):
            assert (law.residuals is not None) == (law.kind == "measured"), name
            if law.fitted_on and law.residuals is not None:
                assert all(len(table.split()) == 2 for table in law.fitted_on), name
                assert law.residuals.median_ape <= LARGEST_MEDIAN, name
                assert law.residuals.coverage_80 is not None, name
                # mxfp4 was measured for too few shapes to say how far others are off.
                assert abs(law.residuals.coverage_80 - 0.8) < (0.25 if "mxfp4" in name else 0.1), name


def test_calibrated_cards_are_those_that_the_list_of_tables_makes() -> None:
    fitted = {card.name: card for card in CARDS.kernels if any(law.fitted_on for _, law in blocks_of(card))}
    assert list(fitted) == [*sorted(shipped.name for shipped in SHIPPED), "zen4-core-torch"]
    for shipped in SHIPPED:
        assert fitted[shipped.name].base == shipped.base
        assert {table.system for table in shipped.tables} == {shipped.tables[0].system}
        measured = {law.source.rpartition(" of aiconf")[0] for _, law in blocks_of(fitted[shipped.name])}
        assert measured <= {f"fitted on {table.name}" for table in shipped.tables}


@pytest.mark.parametrize("card", DEVICES, ids=lambda card: card.name)
def test_kernels_of_every_device_lie_near_its_roofline_at_large_sizes(card: object) -> None:
    device = Device(card=card, kernels=find_kernels(card.kernels))  # type: ignore[attr-defined, arg-type]
    product_s = 2 * 8192**3 / device.peak_flop_per_s("bf16")
    assert 0.75 * product_s < gemm_s(8192, 8192, 8192, "bf16", device) < 2.5 * product_s
    # 64 experts of one token: 64 x 3 x 4096 x 2048 weights of 2 bytes.
    experts = ExpertShape(hidden_size=4096, intermediate_size=2048, gated=True, weight_dtype="bf16")
    streamed_s = 64 * experts.weight_bytes / device.memory_bytes_per_s
    assert streamed_s < grouped_gemm_moe_s([1] * 64, experts, device) < 2.5 * streamed_s


def test_every_device_names_kernels_that_exist() -> None:
    for device in CARDS.devices:
        assert find_kernels(device.kernels).launch(), device.name
    assert {find_device(name).kernels for name in ("h200-sxm", "l4", "logic-pim")} == {
        "h200-vllm",
        "datasheet-only",
        "ideal",
    }
