"""What every run of `.ci/run` came to: time, skipped tests and why, and the number of passed and failed tests."""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

skipped, passed, failed = Counter(), 0, 0
for report in sorted(Path(sys.argv[1]).glob("*.xml")):
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    bad = count["failures"] + count["errors"]
    good = count["tests"] - bad - count["skipped"]
    print(f"{report.stem}: {good} passed, {bad} failed, {count['skipped']} skipped in {float(suite.get('time')):.0f} s")
    passed, failed = passed + good, failed + bad
    if report.stem in ("slow", "fast"):
        skipped.update(reason.get("message", "") for reason in suite.iter("skipped"))
for reason, number in skipped.most_common():
    print(f"skipped {number}: {reason}")
print(f"{passed} passed, {failed} failed")
sys.exit(bool(failed or not passed))
