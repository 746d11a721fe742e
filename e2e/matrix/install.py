"""Puts each release of an SDK into a directory of its own, once: `<directory>/<language>/<version>/`."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from releases import WANTED, Release, Version, nearest

SCENARIOS = Path(__file__).resolve().parent
INSTALLED = "installed.json"


@dataclass
class Installed:
    release: Release
    directory: Path

    def command(self, flavour: str, features: list[str]) -> list[str]:
        """The scenario of its generation, for the features named."""
        script = f"{self.release.generation}.{'py' if self.release.language == 'python' else 'mjs'}"
        if self.release.language == "python":
            return [str(self.directory / "bin" / "python"), str(SCENARIOS / "python" / script), flavour, *features]
        return ["node", str(self.directory / "scenarios" / script), *features]

    def first_program(self) -> list[str]:
        if self.release.language == "python":
            return [str(self.directory / "bin" / "python"), str(SCENARIOS / "python" / "first_program.py")]
        return ["node", str(self.directory / "scenarios" / "first_program.mjs")]


def published(language: str, directory: Path) -> list[str]:
    """Every version the registry has; where it does not answer, those that were installed earlier."""
    if language == "python":
        asked = run([sys.executable, "-m", "pip", "index", "versions", "e2b", "--pre"])
        found = re.search(r"^Available versions: (.*)$", asked.stdout, re.MULTILINE)
        versions = found[1].split(", ") if found else []
    else:
        asked = run(["npm", "view", "e2b", "versions", "--json"])
        versions = json.loads(asked.stdout) if asked.returncode == 0 else []
    if versions:
        return versions
    versions = [path.parent.name for path in (directory / language).glob(f"*/{INSTALLED}")]
    if not versions:
        raise SystemExit(f"the registry does not answer, and no {language} SDK was installed earlier:\n{asked.stderr}")
    print(f"  the registry does not answer; going on with the {language} SDKs that were installed earlier")
    return versions


def install(release: Release, directory: Path) -> Installed:
    """Installs a release unless it is there already. Ends the program when it cannot be had."""
    home = directory / release.language / release.version.text
    done = home / INSTALLED
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        if release.language == "python":
            python = home / "bin" / "python"
            run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
            pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
            run([*pip, f"e2b=={release.version.text}"], check=True)
        else:
            npm = ["npm", "install", "--prefix", str(home), "--no-save", "--no-package-lock", "--loglevel", "error"]
            run([*npm, f"e2b@{release.version.text}"], check=True)
        done.write_text(json.dumps({"version": release.version.text}))
    if release.language == "javascript":
        # An `import 'e2b'` is looked up beside the program, so the programs go where the SDK is.
        shutil.copytree(SCENARIOS / "javascript", home / "scenarios", dirs_exist_ok=True)
    return Installed(release, home)


def chosen(wanted: dict[str, list[str]], directory: Path) -> list[Release]:
    """The releases to try, oldest first in each language, no version twice."""
    found: dict[tuple[str, Version], Release] = {}
    for language in WANTED:
        if not wanted.get(language):
            continue
        versions = published(language, directory)
        for text in wanted[language]:
            version = nearest(text, versions)
            found.setdefault((language, version), Release(language, version, text))
    return list(found.values())


def run(command: list[str], check: bool = False) -> subprocess.CompletedProcess:
    """Runs a package client. With `check`, one that fails ends the program with all it said."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "NPM_CONFIG_AUDIT": "false", "NPM_CONFIG_FUND": "false"}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "env": {**os.environ, **quiet}}
    done = subprocess.run(command, check=False, **options)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done
