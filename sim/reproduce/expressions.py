"""Arithmetic over metrics of cases: `step_time_s(linear) / step_time_s(chunked)`, read by Python's own parser."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from scenarios.errors import ScenarioError

Metric = Callable[[str, str], float]
"""(metric, case) -> value in SI units."""

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str, metric: Metric) -> float:
    """Value of numbers, + - * /, min(...), and `metric(case)` with dotted names of metrics.

    Raises ScenarioError where the expression is anything else, or divides by zero.
    """
    try:
        return _value(ast.parse(expression, mode="eval").body, metric)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):  # what Python's parser raises
        raise ScenarioError(f"'{expression}' is no arithmetic over metric(case)") from None
    except ZeroDivisionError:
        raise ScenarioError(f"'{expression}' divides by a metric that is 0") from None


def _value(node: ast.expr, metric: Metric) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, metric)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, metric), _value(node.right, metric))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "min" and node.args:
        return min(_value(argument, metric) for argument in node.args)
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Name) and not node.keywords:
        return metric(ast.unparse(node.func), node.args[0].id)
    raise ScenarioError(f"'{ast.unparse(node)}': expected numbers, + - * /, min(...) and metric(case)")
