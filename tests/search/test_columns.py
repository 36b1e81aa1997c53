"""What files look like, what of them is kept, and which columns are the same: the parts that need no store."""

from __future__ import annotations

import io
import itertools
import zipfile

import numpy as np
import openpyxl
import pytest

from server.rpc.errors import InvalidRequest
from server.search import mapping, scrubbing, tables
from server.search.vocabulary import concept, plain


def columns(*names: str, **types: str) -> list[dict[str, str]]:
    return [{"name": name, "type": types.get(name, "")} for name in names]


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("пишите на anna.petrova@mail.ru до пятницы", "пишите на <email> до пятницы"),
        ("+7 (916) 123-45-67", "<phone>"),
        ("8 916 123 45 67", "<phone>"),
        ("тел. (495) 123-45-67 доб. 12", "тел. <phone> доб. 12"),
        ("+44 20 7946 0958 call", "<phone> call"),
        ("4276 3800 1234 5678", "<number>"),
        ("ИНН 7707083893", "ИНН <number>"),
        ("Смирнова Ольга Викторовна", "<person>"),
        ("отв. Иванов И.И., срок 3 дня", "отв. <person>, срок 3 дня"),
        ("Dr. Watson", "<person>"),
        ("agreed with John Smith", "agreed with <person>"),
        ("Ольга Смирнова", "<person>"),
        ("https://t.me/olga_s", "https://<link>"),
        ("https://shop.example/cart?user=olga", "https://shop.example/<link>"),
        ("@olga_smirnova", "<link>"),
        # What is no person's stays.
        ("Яндекс Директ", "Яндекс Директ"),
        ("Поиск / Бренд / Москва", "Поиск / Бренд / Москва"),
        ("2026-11-24", "2026-11-24"),
        ("24.11.2026 10:30", "24.11.2026 10:30"),
        ("1 250 000,50", "1 250 000,50"),
        ("12345678.25", "12345678.25"),
        ("240x400", "240x400"),
    ],
)
def test_samples_are_scrubbed(raw: str, kept: str) -> None:
    assert scrubbing.text(raw) == kept


def test_columns_of_people_and_places_are_hidden_as_a_whole() -> None:
    rows = scrubbing.rows(
        ["Кампания", "Ответственный", "First Name", "Адрес доставки", "Клики"],
        [["Поиск", "Ольга", "olga", "ул. Ленина, 5", "12"], ["Сети", "", "x", "", "7"]],
    )
    assert rows == [["Поиск", "<person>", "<person>", "<address>", "12"], ["Сети", "", "<person>", "", "7"]]


def test_samples_are_small() -> None:
    rows = scrubbing.rows(["a", "b"], [["x" * 5000, "y"]] * 50)
    assert len(rows) == scrubbing.MOST_ROWS
    assert max(len(cell) for row in rows for cell in row) == scrubbing.MOST_CELL
    wide = scrubbing.rows([f"c{i}" for i in range(200)], [["ж" * 100] * 200] * 5)
    assert sum(len(cell.encode()) for row in wide for cell in row) <= scrubbing.MOST_BYTES


def test_a_file_of_a_spreadsheet_in_russian_is_read() -> None:
    text = 'Медиаплан "Весна";;;\n;;;\nКанал;Дата начала;Бюджет, руб.;CTR, %\n'
    text += "Поиск;01.03.2026;120 000,50;1,2\nСети;05.03.2026;80 000;0,4\n"
    table = tables.read("план.csv", text.encode("cp1251"))
    assert table.columns == [
        {"name": "Канал", "type": "text"},
        {"name": "Дата начала", "type": "date"},
        {"name": "Бюджет, руб.", "type": "number"},
        {"name": "CTR, %", "type": "number"},
    ]
    assert table.rows[0] == ["Поиск", "01.03.2026", "120 000,50", "1,2"]


def test_a_workbook_is_read_from_its_first_sheet_with_cells() -> None:
    book = openpyxl.Workbook()
    book.create_sheet("план")
    sheet = book.worksheets[1]
    sheet.append(["Report for Rosebud"])
    sheet.append([])
    sheet.append(["Date", "Clicks", "Clicks", "Cost", "Active"])
    for day in range(1, 4):
        sheet.append([f"2026-03-0{day}", day * 10, day, day * 1.5, True])
    file = io.BytesIO()
    book.save(file)
    table = tables.read("report.XLSX", file.getvalue())
    assert [(each["name"], each["type"]) for each in table.columns] == [
        ("Date", "date"), ("Clicks", "integer"), ("Clicks (2)", "integer"), ("Cost", "number"), ("Active", "boolean"),
    ]  # fmt: skip


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b" " * (70 * 2**20))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pdf", b"%PDF"),
        ("a.xlsx", b"no archive"),
        ("a.csv", b""),
        ("a.csv", b"1;2;3\n4;5;6\n"),
        ("a.csv", b"\0\1\2"),
        ("a.csv", (";".join(f"c{i}" for i in range(201))).encode()),
    ],
    ids=["ending", "no_workbook", "empty", "no_header", "binary", "too_wide"],
)
def test_what_is_no_table_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tables.read(name, data)
    assert caught.value.reason == "FILE_INVALID"


def test_an_archive_that_holds_gigabytes_is_not_unpacked() -> None:
    with pytest.raises(InvalidRequest) as caught:
        tables.read("a.xlsx", bomb())
    assert caught.value.violations[0].reason == "TOO_LARGE"


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("Расход, руб. (без НДС)", "cost"), ("costPerClick", "cpc"), ("Кол-во показов", "impressions"), 
     ("Средний CPC", "cpc"), ("total_clicks", "clicks"), ("что-то своё", None)],
)  # fmt: skip
def test_names_of_columns_are_known(name: str, meaning: str | None) -> None:
    assert concept(name) == meaning


def test_columns_are_mapped_across_languages_and_say_why() -> None:
    source = columns("Кампания", "Показы", "Переходы", "Расход (руб.)", "CPC", "Дата старта", Показы="integer")
    target = columns("Campaign name", "Clicks", "Impressions", "Spend", "CPM", "Start date", Impressions="number")
    found = mapping.fit(source, target, {}, {})
    assert {(pair.source, pair.target) for pair in found.pairs} == {
        ("Кампания", "Campaign name"), ("Показы", "Impressions"), ("Переходы", "Clicks"),
        ("Расход (руб.)", "Spend"), ("Дата старта", "Start date"),
    }  # fmt: skip
    # A price per click is none per thousand views, however alike they are spelled.
    assert (found.unmatched, found.missing) == (["CPC"], ["CPM"])
    shown = next(pair for pair in found.pairs if pair.source == "Показы")
    assert shown.reasons == [(mapping.SYNONYM, 0.95), (mapping.TYPE, 0.97)]
    assert found.score == pytest.approx(2 * sum(pair.score for pair in found.pairs) / 12)


def test_what_was_learned_prevails() -> None:
    source, target = columns("Дельта 7", "Клики"), columns("Clicks", "Uplift")
    assert [pair.target for pair in mapping.fit(source, target, {}, {}).pairs] == ["Clicks"]
    learned = mapping.fit(source, target, {plain("дельта-7"): "Uplift"}, {})
    assert {(pair.source, pair.target) for pair in learned.pairs} == {("Дельта 7", "Uplift"), ("Клики", "Clicks")}
    assert learned.pairs[0].reasons[0] == (mapping.LEARNED, 1.0)


def test_types_speak_against() -> None:
    names = columns("Период"), columns("Период")
    same = mapping.fit(columns("Период", Период="date"), columns("Период", Период="date"), {}, {}).score
    other = mapping.fit(columns("Период", Период="date"), columns("Период", Период="number"), {}, {}).score
    assert (mapping.fit(*names, {}, {}).score, same, other) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (5, 3), (6, 6)], ids=str)
def test_no_other_assignment_is_better(shape: tuple[int, int]) -> None:
    numbers = np.random.default_rng(7)
    for _ in range(40):
        scores = numbers.choice([0.0, 0.5, 0.9, 1.0], shape) * numbers.random(shape)
        found = mapping.assignment(scores)
        assert len({i for i, _ in found}) == len({j for _, j in found}) == min(shape)
        wide = scores if shape[0] <= shape[1] else scores.T
        best = max(
            sum(wide[i, j] for i, j in enumerate(each))
            for each in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(scores[pair] for pair in found) == pytest.approx(best)
