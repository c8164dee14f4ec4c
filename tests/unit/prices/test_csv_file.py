"""A CSV of prices: every faulty line is named, and what is written reads back unchanged."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.prices import csv_file
from pipeline.prices.price import EVER, Faulty, Price, decimals, faults_of, rounded

HEAD = "provider,model_name,service_tier,context_from,kind,rate,currency,valid_from,org_id\n"
ORG = "00000000-0000-4000-8000-00000000000a"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.csv"
    path.write_text(text, "utf-8")
    return path


def messages(folder: Path, text: str) -> list[str]:
    """The faults of a file, as lines."""
    with pytest.raises(Faulty) as caught:
        csv_file.read(written(folder, text))
    return [f"{fault.where}: {fault.message}" for fault in caught.value.faults]


def test_a_line_is_a_price(tmp_path: Path) -> None:
    path = written(
        tmp_path, HEAD + f"openai,gpt-5,batch,200001,input,2.50,USD,2026-03-01T05:00+05:00,{ORG}\n"
    )
    [price] = csv_file.read(path)
    assert (price.key[1:], str(price.key[0]), price.rate) == (
        ("openai", "gpt-5", "batch", 200_001, "input"),
        ORG,
        Decimal("2.50"),
    )
    assert (price.valid_from, price.valid_to) == (datetime(2026, 3, 1, tzinfo=UTC), None)
    assert (price.source, price.basis) == ("csv", "mine.csv")


def test_every_faulty_line_is_named(tmp_path: Path) -> None:
    lines = [
        "p,m,,,input,0.30000000000000004,USD,,",
        "p,m,,,output,-1,USD,,",
        "p,m,,,cache_read,1,USD,2026-01-01T00:30:00Z,",
        "p,m,,,audio,1,USD,,",
        "p,m,slow,,request,1,USD,,",
        "p,m,,,reasoning,1,EUR,,",
        "p,n,,,input,1,USD,,",
        "p,n,,,input,2,,,",
        "p,n,,,output,1.000000,USD,,",
        ",n,,,cache_write,,USD,soon,me",
        "p,o,,,input,1,USD,0001-01-01T00:00+05:00,",
        "p,q,,,discount,10,,,",
        'p,"n,,',
    ]
    found = messages(tmp_path, HEAD + "\n".join(lines[:-1]) + "\n")
    assert [line.partition(":")[0] for line in found] == [
        f"line {number}" for number in (2, 3, 4, 5, 6, 7, 9, 11, 11, 11, 12, 13)
    ]
    expected = (
        "decimals",
        "rate -1 is negative",
        "00:30:00+00:00 is not a whole hour",
        "kind 'audio' is unknown",
        "service_tier 'slow' is unknown",
        "currency 'EUR' is not USD",
        "rate 1 and 2",
        "rate is missing",
        "valid_from 'soon' is not a time",
        "org_id 'me' is not a UUID",
        "valid_from '0001-01-01T00:00+05:00' is not a time",
        "a discount belongs to an org",
    )
    for line, part in zip(found, expected, strict=True):
        assert part in line
    assert "line 2: is no CSV" in messages(tmp_path, HEAD + lines[-1])[0]


def test_a_price_may_stand_in_a_file_once(tmp_path: Path) -> None:
    lines = [
        "p,m,,,input,1,USD,,",
        "p,m,standard,0,input,1.0,USD,,",
        "p,m,,,input,3,,1970-01-01,",
        "p,m,,,output,1,USD,2026-01-01,",
        "p,m,,,output,1,USD,2026-01-01T05:30+05:30,",
        "p,m,,,output,2,USD,2026-02-01,",
    ]
    assert messages(tmp_path, HEAD + "\n".join(lines) + "\n") == [
        "line 3: is the same price as line 2: leave one out",
        "line 4: is the same price as line 2, but rate 1 and 3",
        "line 6: is the same price as line 5: leave one out",
    ]


def test_reading_goes_on_behind_a_line_that_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    lines = [
        b"p,caf\xe9,,,input,1,USD,,",
        b"p,m,,,output,-1,USD,,",
        b'p,"m"x,,,input,1,USD,,',
        b"",
        b'p,"m',
        b'n",,,input,-2,USD,,',
        b"p," + b"x" * 200_000 + b",,,input,1,USD,,",
        b"p,m,,,input,1_000,USD,,",
        b"p,m,,1_000,input,1,USD,,",
        "p,m,,٣,input,1,USD,,".encode(),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode() + b"\r\n".join(lines))
    with pytest.raises(Faulty) as caught:
        csv_file.read(path)
    assert [fault.where for fault in caught.value.faults] == [f"line {n}" for n in (2, 3, 4, 6, 8, 9, 10, 11)]
    assert caught.value.faults[0].message == "is not UTF-8"


def test_a_file_that_is_too_large_or_utf_16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(HEAD + "p,m,,,input,1,USD,,\n", "utf-16")
    with pytest.raises(Faulty) as caught:
        csv_file.read(path)
    assert "UTF-8" in caught.value.faults[0].message
    with pytest.raises(Faulty) as caught:
        csv_file.read(Path("/dev/zero"))
    assert caught.value.faults[0].message == "is larger than 32 MiB: import it in parts"


def test_a_price_that_could_not_be_stored_is_named(tmp_path: Path) -> None:
    lines = [
        "p,m\0,,,input,1,USD,,",
        "p,n,,,input,1,USD,1969-12-31,",
        f"{'p' * 65},{'m' * 129},,,input,1,USD,,",
    ]
    assert [line.partition(":")[0] for line in messages(tmp_path, HEAD + "\n".join(lines) + "\n")] == [
        "line 2",
        "line 3",
        "line 4",
        "line 4",
    ]
    price = Price(provider="p", model_name="m\ud800", kind="input", rate=Decimal(1), basis="x" * 1001)
    assert len(faults_of([price])) == 2


def test_columns_are_known_and_complete(tmp_path: Path) -> None:
    assert messages(tmp_path, "provider,model,kind,rate\n") == [
        f"line 1: column 'model' is unknown: expected {', '.join(csv_file.COLUMNS)}",
        "line 1: column 'model_name' is missing",
    ]
    assert "fewer cells" in messages(tmp_path, HEAD + "p,m\n")[0]
    assert "more cells" in messages(tmp_path, HEAD + "p,m,,,input,1,USD,,,,,\n")[0]
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"p,\xe9,,,input,1,USD,,\n")
    with pytest.raises(Faulty):
        csv_file.read(tmp_path / "latin.csv")


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    from uuid import UUID

    prices = [
        Price(
            provider="p",
            model_name='m "x", y',
            kind="input",
            rate=Decimal("1E-6"),
            valid_from=EVER,
            source="s",
        ),
        Price(
            provider="",
            model_name="",
            service_tier="",
            kind="discount",
            rate=Decimal("12.5"),
            valid_from=datetime(2026, 1, 1, tzinfo=UTC),
            valid_to=datetime(2026, 2, 1, tzinfo=UTC),
            org_id=UUID(ORG),
            source="manual",
            basis="contract 7",
        ),
    ]
    file = io.StringIO()
    assert csv_file.write(file, prices) == 2
    read = csv_file.read(written(tmp_path, file.getvalue()))
    for one, other in zip(prices, read, strict=True):
        assert (one.key, one.rate, one.valid_from, one.valid_to) == (
            other.key,
            other.rate,
            other.valid_from,
            other.valid_to,
        )
        assert (other.source, other.basis) == (one.source, one.basis or "mine.csv")
    assert faults_of(read) == []


def test_decimals_are_counted_without_zeros_at_the_end() -> None:
    for text, count in (("1.50", 1), ("0.000", 0), ("1E-7", 7), ("100", 0), ("1e3", 0), ("0.1234560", 6)):
        assert decimals(Decimal(text)) == count, text


def test_a_rate_of_a_package_is_rounded_only_if_that_changes_next_to_nothing() -> None:
    assert rounded(Decimal("0.30000000000000004")) == Decimal("0.3")
    assert rounded(Decimal("0.0833333333333333")) == Decimal("0.083333")
    assert rounded(Decimal("0.0359375")) == Decimal("0.035938")
    for text in ("0", "2.5", "0.00000012", "0.0000105", "1e30", "-1e30"):
        assert rounded(Decimal(text)) == Decimal(text)


def test_names_and_bases_read_back_to_the_letter(tmp_path: Path) -> None:
    names = [
        " lead",
        "trail ",
        "\u00a0nb\u2028",
        "a\rb",
        "\r",
        "a\nb",
        "a\r\nb",
        'q"uo"te',
        "c,omma",
        "'",
        " ",
    ]
    prices = [
        Price(
            provider=name, model_name=name, kind="input", rate=Decimal(1), valid_from=EVER, basis=f"{name}\r"
        )
        for name in names
    ]
    path = tmp_path / "out.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv_file.write(file, prices)
    read = csv_file.read(path)
    assert [(one.provider, one.model_name, one.basis) for one in read] == [
        (name, name, f"{name}\r") for name in names
    ]
    noted = [note.partition(": ")[2] for note in csv_file.notes(read)]
    assert noted[0] == "provider ' lead' has a blank at an edge, and is kept so"
    assert len(noted) == 2 * 5


def test_a_fault_shows_so_much_of_a_cell(tmp_path: Path) -> None:
    for cell in ("9" * 400, "x" * 400):
        [message] = messages(tmp_path, HEAD + f"p,m,,,input,{cell},USD,,\n")
        assert len(message) < 160
