"""`mrm search`: the options reach the service, and results say why they were found."""

from __future__ import annotations

from mrm.ai.v1 import search_service_pb2 as pb
from server.cli import search
from server.search import mapping
from server.search.vocabulary import concept
from server.seeding import story


def test_a_result_says_why_it_was_found() -> None:
    match = pb.Match(score=0.61, semantic_score=0.5, keyword_score=0.8, terms=[pb.MatchedTerm(term="кофе")])
    assert search.line(("id", "Реклама\nкофе", "", match)) == "0.610 id Реклама кофе: meaning 0.50; words: кофе"
    assert search.why(pb.Match(score=0.2, keyword_score=0.6, terms=[pb.MatchedTerm(term="tea")])) == "words: tea"
    assert search.table([("id", "[x]", "more", match)]).row_count == 1


def test_the_templates_of_the_demo_recognise_each_other() -> None:
    report = story.TEMPLATES[story.RETAIL.key][1]
    columns = [{"name": name, "type": kind} for name, kind in report.columns]
    english = ("Date", "Campaign", "Impressions", "Clicks", "Spend", "Orders", "Revenue")
    found = mapping.fit([{"name": name, "type": ""} for name in english], columns, {}, {})
    assert [pair.target for pair in found.pairs] == [name for name, _ in report.columns]
    for templates in story.TEMPLATES.values():
        assert all(concept(name) != "person" for each in templates for name, _ in each.columns)
        assert all(len(each.columns) == len(each.sample) for each in templates)
