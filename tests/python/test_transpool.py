"""The Python package: what torch.library.opcheck and torch.compile make of the operators, errors, the module."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))

import transpool  # noqa: E402

LENGTHS = torch.tensor([12, 5])
# opcheck takes its time: options that change what is computed, one case each.
MORE_OPTIONS: list[tuple[str, dict[str, Any]]] = [("hard_topk", {"gradient": "none"}), ("hard_topk", {"gradient": "gated"})]


def runs_by_name(variant: dict[str, Any]) -> bool:
    return all(option["default"] is not None or option.get("optional") for option in variant["options"])


def options_of(variant: dict[str, Any]) -> dict[str, Any]:
    return {"seed": 1} if any(option["name"] == "seed" for option in variant["options"]) else {}


def rows(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True)
    return x, torch.rand(2, n, dtype=torch.float64, requires_grad=True)


class Opcheck(unittest.TestCase):
    def check(self, op: Any, arguments: tuple[Any, ...]) -> None:
        results = torch.library.opcheck(op, arguments, raise_exception=False)
        self.assertEqual(set(results.values()), {"SUCCESS"}, f"{arguments[-2:]}: {results}")

    def test_every_pooling_variant_passes(self) -> None:
        cases = [(v["name"], options_of(v)) for v in transpool.list_pooling() if runs_by_name(v)]
        for name, options in cases + MORE_OPTIONS:
            with self.subTest(name, **options):
                self.check(torch.ops.transpool.pool, (*rows(), 4, LENGTHS, name, json.dumps(options)))

    def test_every_attention_variant_passes(self) -> None:
        for variant in transpool.list_attention():
            if not runs_by_name(variant):
                continue
            with self.subTest(variant["name"]):
                q, k, v = (torch.randn(2, 2, 12, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
                options = json.dumps(options_of(variant))
                self.check(torch.ops.transpool.attend, (q, k, v, LENGTHS, variant["name"], options))

    def test_attention_passes_on_views_of_rows_and_gives_their_layout(self) -> None:
        plain = torch.randn(2, 12, 2, 4, dtype=torch.float64)
        packed = torch.randn(2, 12, 3, 2, 4, dtype=torch.float64)
        for name in ("full", "blockwise", "sliding_window", "efficient"):
            for q in (plain.transpose(1, 2), packed[:, :, 1].transpose(1, 2)):
                with self.subTest(name, strides=q.stride()):
                    out = torch.ops.transpool.attend(q, q, q, LENGTHS, name, "")
                    self.assertTrue(out.transpose(1, 2).is_contiguous())
                    torch.testing.assert_close(out, torch.ops.transpool.attend(*[q.contiguous()] * 3, LENGTHS, name, ""))
                    inputs = [q.detach().requires_grad_() for _ in range(3)]
                    self.check(torch.ops.transpool.attend, (*inputs, LENGTHS, name, ""))


class Compile(unittest.TestCase):
    def setUp(self) -> None:
        torch._dynamo.reset()

    def test_pool_is_one_graph_with_the_same_gradients_at_every_size(self) -> None:
        def loss(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            pooled = transpool.pool(2 * x, scores, 4, name="successive_halving", base=3)
            return pooled.values.square().sum() + pooled.scores.sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (12, 17):
            x, scores = rows(n)
            expected, found = loss(x, scores), compiled(x, scores)
            torch.testing.assert_close(found, expected)
            for a, b in zip(torch.autograd.grad(found, (x, scores)), torch.autograd.grad(expected, (x, scores))):
                torch.testing.assert_close(a, b)

    def test_both_passes_see_the_same_noise(self) -> None:
        for variant in transpool.list_pooling():
            if not (variant["capabilities"]["stochastic"] and variant["capabilities"]["differentiable"]):
                continue
            with self.subTest(variant["name"]):
                x, scores = rows()

                def values(x: torch.Tensor, scores: torch.Tensor, name: str = variant["name"]) -> torch.Tensor:
                    return transpool.pool(x, scores, 4, name=name).values

                first = torch.compile(values, fullgraph=True, backend="aot_eager")(x, scores)
                # Values are linear in x at fixed noise, so that <gradient, x> gives them back.
                gradient = torch.autograd.grad(first.sum(), x)[0]
                torch.testing.assert_close((gradient * x).sum(), first.sum())

    def test_attend_is_one_graph(self) -> None:
        def attend(q: torch.Tensor) -> torch.Tensor:
            return transpool.attend(q, q, q, name="blockwise", chunk=4, causal=True).sin()

        q = torch.randn(2, 2, 12, 4, requires_grad=True)
        found = torch.compile(attend, fullgraph=True, backend="aot_eager")(q)
        torch.testing.assert_close(found, attend(q))
        torch.testing.assert_close(torch.autograd.grad(found.sum(), q), torch.autograd.grad(attend(q).sum(), q))

    def test_the_module_is_one_graph(self) -> None:
        layer = transpool.Pooling(4, 3)
        found = torch.compile(layer, fullgraph=True, backend="aot_eager")(torch.randn(2, 12, 4))
        self.assertEqual(found.values.shape, (2, 3, 4))


class Errors(unittest.TestCase):
    def test_wrong_values_are_value_errors_that_name_them(self) -> None:
        x, scores = rows()
        for words, arguments, options in [
            ("k: 13", {"k": 13}, {}),
            ("k: 0", {"k": 0}, {}),
            ('did you mean "hard_topk"', {"name": "hard_top"}, {}),
            ("gradient", {}, {"gradient": "gate"}),
            ("bass", {}, {"bass": 2}),
            ("lengths: 13", {"lengths": torch.tensor([13, 2])}, {}),
            ("lengths: ", {"lengths": torch.tensor([[3, 2]])}, {}),
            ("scores: shape", {"scores": scores[:, :5]}, {}),
            ("batch 0", {"x": x[:0], "scores": scores[:0]}, {}),
            ("missing", {"name": "torchscript"}, {}),
            ("nowhere.pt", {"name": "torchscript"}, {"file": "nowhere.pt"}),
            ("temperature: -1", {"name": "softsort"}, {"temperature": -1}),
            ("temperature: 0", {"name": "sigmoid_threshold"}, {"temperature": 0}),
            ("base: 1 is out of range", {"name": "successive_halving"}, {"base": 1}),
            ('pooling operator "hard_topk": k: 13', {"k": 13}, {}),
        ]:
            call: dict[str, Any] = {"x": x, "scores": scores, "k": 4, "name": "hard_topk"}
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                transpool.pool(**(call | arguments), **options)

    def test_wrong_values_of_attention_are_value_errors_that_name_them(self) -> None:
        q = torch.randn(2, 2, 8, 4)
        for words, arguments, options in [
            ("unknown attention operator", {"name": "ful"}, {}),
            ("chunk: 0 is out of range", {"name": "blockwise"}, {"chunk": 0}),
            ("chnk", {"name": "blockwise"}, {"chnk": 2}),
            ('attention operator "full": k: shape', {"k": q[:1]}, {}),
            ('attention operator "full": lengths: 9', {"lengths": torch.tensor([9, 2])}, {}),
            (r"q: shape \(0, 2, 8, 4\)", {"q": q[:0], "k": q[:0], "v": q[:0]}, {}),
            (r"q: shape \(2, 2, 0, 4\)", {"q": q[:, :, :0], "k": q[:, :, :0], "v": q[:, :, :0], "name": "lsh"}, {}),
            ("does not support a causal mask", {"name": "efficient", "causal": True}, {}),
        ]:
            call: dict[str, Any] = {"q": q, "k": q, "v": q}
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                transpool.attend(**(call | arguments), **options)

    def test_wrong_types_are_type_errors(self) -> None:
        x, scores = rows()
        for words, arguments in [
            ("Long", {"x": x.long()}),
            ("Half", {"scores": scores.half()}),
            ("int64", {"lengths": torch.tensor([3, 2], dtype=torch.int32)}),
        ]:
            call: dict[str, Any] = {"x": x, "scores": scores, "k": 4}
            with self.subTest(words), self.assertRaisesRegex(TypeError, words):
                transpool.pool(**(call | arguments))


class Layer(unittest.TestCase):
    def test_it_learns_to_keep_the_marked_rows(self) -> None:
        torch.manual_seed(3)
        layer = transpool.Pooling(8, 4, name="successive_halving")
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)

        def share_kept() -> float:
            positions = layer(x).positions
            return marked.gather(1, positions).double().mean().item()

        for _ in range(60):
            marked = torch.zeros(16, 32, dtype=torch.bool)
            marked.scatter_(1, torch.rand(16, 32).argsort(1)[:, :4], True)
            x = torch.randn(16, 32, 8)
            x[..., 0] += 3.0 * marked
            loss = -layer(x).values[..., 0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.assertGreater(share_kept(), 0.8)

    def test_half_precision_rows_are_scored_in_float32(self) -> None:
        pooled = transpool.Pooling(4, 3).bfloat16()(torch.randn(2, 9, 4, dtype=torch.bfloat16), torch.tensor([9, 2]))
        self.assertEqual((pooled.values.dtype, pooled.scores.dtype), (torch.bfloat16, torch.float32))
        self.assertEqual(pooled.positions[1].tolist()[2], -1)


class HardTopk(torch.nn.Module):
    def forward(self, x: torch.Tensor, scores: torch.Tensor, k: int,
                lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positions = scores.topk(k, dim=1).indices.sort(dim=1).values
        kept = scores.gather(1, positions)
        rows = x.gather(1, positions.unsqueeze(2).expand(-1, -1, x.shape[2]))
        return rows * kept.unsqueeze(2).to(x.dtype), kept, positions


class WithoutLengths(HardTopk):
    def forward(self, x: torch.Tensor, scores: torch.Tensor,  # type: ignore[override]
                k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positions = scores.topk(k, dim=1).indices
        return x[:, :k], scores[:, :k], positions


class OtherSignature(torch.nn.Module):
    def forward(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return x * scores.unsqueeze(2)


class WrongResult(HardTopk):
    def forward(self, x: torch.Tensor, scores: torch.Tensor, k: int,
                lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x, scores, scores


class TorchScript(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def save(self, module: torch.nn.Module) -> str:
        file = str(self.folder / f"{type(module).__name__}.pt")
        torch.jit.script(module).save(file)
        return file

    def test_a_file_is_an_operator_with_gradients(self) -> None:
        file = self.save(HardTopk())
        x, scores = rows()
        found = transpool.pool(x, scores, 4, name="torchscript", file=file, against="hard_topk")
        expected = transpool.pool(x, scores, 4, name="hard_topk", gradient="gated")
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b)
        for a, b in zip(torch.autograd.grad(found.values.sum(), (x, scores)),
                        torch.autograd.grad(expected.values.sum(), (x, scores))):
            torch.testing.assert_close(a, b)

    def test_files_that_do_not_fit_are_named_with_what_is_allowed(self) -> None:
        x, scores = rows()
        text = self.folder / "text.pt"
        text.write_text("no archive")
        for file, words in [
            (self.save(OtherSignature()), "OtherSignature.pt.*int k, Tensor\\? lengths"),
            (self.save(WrongResult()), "WrongResult.pt.*values"),
            (str(text), "text.pt.*no TorchScript file"),
        ]:
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                transpool.pool(x, scores, 4, name="torchscript", file=file)
        with self.assertRaisesRegex(ValueError, "takes no lengths"):
            transpool.pool(x, scores, 4, name="torchscript", lengths=LENGTHS, file=self.save(WithoutLengths()))


class Library(unittest.TestCase):
    def test_the_lists_name_variants_with_their_options(self) -> None:
        pooling = {variant["name"]: variant for variant in transpool.list_pooling()}
        self.assertIn("successive_halving", pooling)
        self.assertIn("base", [option["name"] for option in pooling["successive_halving"]["options"]])
        self.assertIn("full", [variant["name"] for variant in transpool.list_attention()])

    def test_a_library_that_is_not_there_is_named(self) -> None:
        from unittest import mock

        from transpool import _library

        with mock.patch.dict("os.environ", {"TRANSPOOL_LIBRARY": "/nowhere/lib.so"}):
            with self.assertRaisesRegex(ImportError, "/nowhere/lib.so"):
                _library.load()


if __name__ == "__main__":
    unittest.main()
