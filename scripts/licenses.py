"""The licence part of `cargo deny check`, for machines that lack cargo-deny: every dependency's licence expression must
be satisfiable with the licences that deny.toml allows. Needs Python 3.11 and nothing else."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def satisfied(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met. `A/B` is the old spelling of `A OR B`."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives() -> bool:
        result = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = conjunction() or result
        return result

    def conjunction() -> bool:
        result = licence()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = licence() and result
        return result

    def licence() -> bool:
        token = tokens.pop(0)
        if token == "(":
            result = alternatives()
            tokens.pop(0)
            return result
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in allowed

    return alternatives()


def main() -> int:
    rules = tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]
    allowed = set(rules["allow"])
    exceptions = {rule["crate"]: allowed | set(rule["allow"]) for rule in rules.get("exceptions", [])}
    answer = subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    refused = [
        f"{package['name']} {package['version']}: {package['license']}"
        for package in json.loads(answer.stdout)["packages"]
        if not satisfied(package["license"] or "none-stated", exceptions.get(package["name"], allowed))
    ]
    for line in refused:
        print(f"licence not allowed by deny.toml: {line}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
