"""The token classes of PTBTokenizer 3.4.1, which `ptb_lexer` scans text with.

PTBTokenizer is a generated scanner; here each of its classes is one regular expression. The rules are this project's
own description of what that scanner accepts, checked against it on real and random text.

Conventions: a rule's group 1 is the token; what follows group 1 in the pattern is looked at and counts for the length.
Patterns are case-sensitive, `(?i:…)` marks the parts where the scanner is not.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}
"""Contracted words and where they are cut in two."""

# Abbreviations keep their full stop. Square brackets: only with that capital, because it is a common word otherwise.
_MONTHS_AND_DAYS = "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thurs Fri"
_STATES = (
    "Ala Ariz [A]z [A]rk Calif Colo Conn Ct Dak [D]el Fla Ga [I]ll Ind Kan Kans Ky [L]a [M]ass Md Mich Minn [M]iss Mo"
    " Mont Neb Nev Okla [O]re [P]a Penn Tenn [T]ex Va Vt [W]ash Wis Wisc Wyo"
)
_COMPANIES = "Inc Co Cos Corp Pte Pty Ptes Ptys Ppte Ppty Pptes Pptys Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys"
_SUFFIXES = r"tel est ext sq Jr Sr Bros Ed\.D Ph\.D Blvd Rd Esq etc al seq Bldg"
_TITLES = (
    "Mr Mrs Ms [M]iss Dr Drs Prof Profs Sen Sens Rep Reps Atty Attys Lt Col Gen Messrs Gov Govs Adm Rev Maj Sgt Cpl Pvt"
    " Capt St Ste Ave Pres Lieut Hon Brig Cmdr Comdr Pfc Spc Supt Supts Det Mt Ft Adj Adv Asst Assoc Ens Insp Mlle Mme"
    " Msgr Sfc"
)
_OTHERS = r"vs Alex Wm Jos Cie a\.k\.a cf TREAS Ph Invt Elec Natl M[ft]g Dept"
_BEFORE_NUMBERS = "ca fig figs prop no nos art bldg pp op"
_SENTENCE_STARTS = (
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More Mr\\. Ms\\."
    " Now Once One Other Our She Since So Some Such That The Their Then There These They This We When While What Yet"
    " You"
)
ABBREVIATIONS = frozenset(
    re.sub(r"[\[\]]", "", word).lower()
    for group in (_MONTHS_AND_DAYS, _STATES, _COMPANIES, _SUFFIXES, _TITLES, _OTHERS, _BEFORE_NUMBERS)
    for word in group.replace("M[ft]g", "Mfg Mtg").split()
)
"""Lower-case abbreviations, in any of which a full stop may belong to the token."""

# Characters of category L that are no letters to the scanner, whose Unicode is 6.1: they came later.
_LATER_LETTERS = (
    "037F 0528-052F 0560 0588 05EF 0860-088F 08A1 08AD-08C9 0978 0980 09FC 0AF9 0C34 0C5A-0C5D 0C80 0CDC-0CDD 0D04"
    " 0D54-0D5F 0E86 0E89 0E8C 0E8E-0E93 0E98 0EA0 0EA8-0EA9 0EAC 13F5-13FD 16F1-16F8 170D 171F 1878 191D-191E"
    " 19B0-19C0 19C8-19C9 1B4C 1C80-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF A698-A69D"
    " A78F A794-A79F A7AB-A7F7 A8FD-A8FE A9E0-A9FE AA7E-AA7F AB30-ABBF"
)
# Marks and a few symbols that may stand inside a word.
_WORD_MARKS = (
    "00AD 02C2-02C5 02D2-02DF 02E5-02EB 02ED 02EF-036F 0375 0378-0379 0384-0385 03F6 0483-0487 055A-055F 0591-05BD 05BF"
    " 05C1-05C2 05C4-05C5 05C7 0615-061A 064B-065E 0670 06D6-06E4 06E7-06ED 06FD-06FE 070F 0711 0730-074C 07A6-07B0"
    " 07EB-07F3 07FA 0900-0903 093C 093E-094E 0951-0955 0962-0963 0981-0983 09BC 09BE-09C4 09C7-09C8 09CB-09CD 09D7"
    " 09E2-09E3 0A01-0A03 0A3C 0A3E-0A4F 0A81-0A83 0ABC 0ABE-0ACF 0B82 0BBE-0BC2 0BC6-0BC8 0BCA-0BCD 0C01-0C03"
    " 0C3E-0C56 0D3E-0D44 0D46-0D48 0E31 0E34-0E3A 0E47-0E4E 0EB1 0EB4-0EBC 0EC8-0ECD"
)
_DIGITS_NOT_6_1 = "0DE6-0DEF A9F0-A9F9"
_SYMBOLS = (
    "0025-0026 002B 005C 005E 007C 007E 00A6-00A9 00AC 00AE-00BA 00D7 00F7 0387 05BE 05C0 05C3 05C6 05F3-05F4 0600-0603"
    " 0606-060A 060C 0614 061B 061E 066A 066D 0703-070D 07F6-07F8 0964-0965 0E4F 1FBD 2016-2017 2020-2023 2030-2038"
    " 203B 203E-2042 2044 207A-207F 208A-208E 2100-214F 2190-2BFF 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65"
)


def _code_points(ranges: str) -> Iterator[int]:
    for item in ranges.split():
        first, _, last = item.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def _as_class(code_points: set[int]) -> str:
    """Write code points as the inside of a regular-expression class."""
    parts = []
    start = None
    for point in range(0x10001):
        if point in code_points and start is None:
            start = point
        elif point not in code_points and start is not None:
            parts.append(f"\\u{start:04x}-\\u{point - 1:04x}")
            start = None
    return "".join(parts)


class Rule(NamedTuple):
    """One token class: where it may start, its pattern, and what becomes of the matched text."""

    first: re.Pattern[str]
    pattern: re.Pattern[str]
    finish: Callable[[str], tuple[str | None, int]]  # matched text -> (token or None for no token, characters used)
    needs: str  # a character without which it matches nowhere: saves quadratic time on very long captions


def _keep(text: str) -> tuple[str, int]:
    return text, len(text)


def _drop(text: str) -> tuple[None, int]:
    return None, len(text)


def _becomes(token: str) -> Callable[[str], tuple[str, int]]:
    return lambda text: (token, len(text))


def _rewrite(rewrite: Callable[[str], str]) -> Callable[[str], tuple[str, int]]:
    return lambda text: (rewrite(text), len(text))


def _cut_at(length: int) -> Callable[[str], tuple[str, int]]:
    return lambda text: (text[:length], length)


def _acronym_before_sentence(text: str) -> tuple[str, int]:
    # "I. The" ends a sentence; "U.S. The" does too, and keeps its full stop besides.
    return (text[0], 1) if len(text) == 2 else (text, len(text) - 1)


def _without_soft_hyphens(text: str) -> str:
    return text.replace("\u00ad", "") or "-"


def _with_ascii_ampersand(text: str) -> str:
    return re.sub("(?i:&amp;)", "&", text)


def _with_hard_spaces(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _with_named_parentheses(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _with_latex_quotes(text: str) -> str:
    text = text.replace("&apos;", "'").replace("&quot;", "''").replace('"', "''")
    for characters, quote in (("\x91‘‛‹", "`"), ("\x92’›", "'"), ("\x93“«", "``"), ("\x94”»", "''")):
        for character in characters:
            text = text.replace(character, quote)
    return text


def _with_spelled_fractions(text: str) -> str:
    return {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}.get(text, text)


def _with_plain_currency(text: str) -> str:
    return {"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "\u20a0": "$", "€": "$"}.get(text, text)


def _dashes(text: str) -> tuple[str, int]:
    return ("--" if len(text) in (3, 4) else text), len(text)


def _any_case(words: str) -> str:
    """Alternatives from a list of words; a bracketed capital stays a capital, all else matches in any case."""
    return "|".join(f"[{word[1]}](?i:{word[3:]})" if word.startswith("[") else f"(?i:{word})" for word in words.split())


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """Return the rules of the scanner in the order in which they win at equal length; built once."""
    letters = {p for p in range(0x10000) if unicodedata.category(chr(p))[0] == "L"} | {0x1885, 0x1886}
    letters -= set(_code_points(_LATER_LETTERS))
    digits = {p for p in range(0x10000) if unicodedata.category(chr(p)) == "Nd"} - set(_code_points(_DIGITS_NOT_6_1))
    A, D = _as_class(letters), _as_class(digits)
    W = _as_class(letters | set(_code_points(_WORD_MARKS)))
    symbols = _as_class(set(_code_points(_SYMBOLS)))

    entity_letter = "&[aeiouAEIOU](?i:acute|grave|uml);"
    letter = f"(?:[{W}]|{entity_letter})"
    word_rest = f"(?:[{W}{D}]++|{entity_letter})*+"
    word = f"{letter}{word_rest}(?:[.!?]{letter}{word_rest})*+"
    apos = "(?:['\x92’]|(?i:&apos;))"
    apos_like = f"(?:{apos}|[`\x91‘‛])"
    possessive = f"{apos}(?:[msdMSD]|(?i:re|ve|ll))"
    negation = f"(?i:n){apos_like}(?i:t)"
    space = "[ \t\u00a0\u2000-\u200a\u3000]"
    space_or_line = "[ \t\u00a0\u2000-\u200a\u3000\r\n\u2028\u2029\x0b\x0c\x85]"
    clause_end = "[,;:\u3001]"
    name = "[A-Za-z][A-Za-z0-9_:.-]*+"
    markup = (
        rf"<(?:[!?][A-Za-z-][^>\r\n]*>|{name}(?:[ ]++(?:{name}[ ]*+=[ ]*+(?:'[^']*'|\"[^\"]*\")|{name}))*+[ ]*+"
        rf"(?:/[ ]*+)?>|/{name}[ ]*+>)"
    )
    with_us = r"(?i:Canada|Sino|Korean|EU|Japan|non)-(?i:U\.S)|(?i:U\.S\.-(?:U\.S\.S\.R|U\.K))"
    initials = rf"(?:{with_us}|[A-Za-z](?:\.[A-Za-z])*)"
    sentence_end = rf"{space_or_line}(?:{markup}|{space_or_line}|[A-Z\u00c0-\u00de])"
    before_lower = _any_case(" ".join((_MONTHS_AND_DAYS, _STATES, _COMPANIES, _SUFFIXES)))
    before_upper = rf"(?:{initials}|{_any_case(_TITLES + ' ' + _OTHERS)})"
    starts = "|".join(f"{start[0]}(?i:{start[1:]})" for start in _SENTENCE_STARTS.split())
    whole_number = f"[{D}]"
    host = r"[^ \t\n\f\r\"<>|.!?(){},]++\."
    bare_host = r"[^ \t\n\f\r\"`'<>|.!?(){},-_$]++\."
    path = r"/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-]"
    mail = r"[^ \t\n\f\r\"<>|(){}.\u00a0]+"
    elided = f"[dDoOlL]{apos_like}[{A}{D}]"
    thing = f"(?:{elided})?[{A}{D}]+(?:[-_\u058a\u2010\u2011](?:{elided})?[{A}{D}]+)*"
    dotted = rf"(?:{with_us}|[A-Za-z](?:\.[A-Za-z])+)\."
    hyphenated = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{dotted}|[A-Za-z0-9\u00ad]+))+"
    company = r"[A-Z]+(?:(?:(?i:&amp;)|[+&])[A-Z]+)+"
    slashed = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    extensions = (
        "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py"
        "|sql|tar|txt|wav|x|xml|zip"
    )
    phone_end = "[0-9]{3,4}[- \u00a0]?[0-9]{3,5}"
    any_letter, any_apos, anything = f"[{W}&]", "['\x92’&]", r"[^ \t]"
    keep_clean = _rewrite(_without_soft_hyphens)
    keep_amp = _rewrite(_with_ascii_ampersand)
    rules: list[Rule] = []

    def add(first: str, pattern: str, finish: Callable[[str], tuple[str | None, int]] = _keep, needs: str = "") -> None:
        rules.append(Rule(re.compile(first), re.compile(pattern), finish, needs))

    add("[cC]", r"((?i:c)\+\+)")
    add("[cCfF]", "((?i:[cf])#)")
    for contraction, cut in SPLIT_WORDS.items():
        add(any_letter, f"((?i:{contraction}))", _cut_at(cut))
    add("'", "((?i:'twas))", _cut_at(2))
    add("'", "((?i:'tis))", _cut_at(2))
    add("<", f"({markup})", _rewrite(_with_hard_spaces))
    add("[&\x96\x97–—―]", "((?i:&(?:MD|mdash|ndash);)|[\x96\x97–—―])", _becomes("--"))
    add("&", "((?i:&amp;))", _becomes("&"))
    add("&", "((?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);))")
    add(any_letter, f"({word}){possessive}", keep_clean)
    add("[A-Za-z\u00ad]", f"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){negation}", keep_clean)
    add(any_letter, f"({word})", keep_clean)
    # Words with an apostrophe of their own.
    add(any_apos, f"({apos}(?i:n){apos}?)")
    add("[lLdDjJ]", f"([lLdDjJ]{apos})")
    add(any_letter, f"((?i:Dunkin|somethin|ol){apos})")
    add(any_apos, f"({apos}(?i:em|till?|cause))")
    add("[A-HJ-XZn]", f"([A-HJ-XZn]{apos_like}[{A}]{{2,}})")
    add(any_apos, f"({apos}[2-9]0(?i:s))")
    add(any_letter, f"([{A}]+[aeiouyAEIOUY]{apos_like}[aeiouA-Z][{A}]*)")
    add(any_letter, r"((?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l))")
    add("[oO]", f"((?i:O){apos_like}(?i:o))")
    add("[yY]", f"((?i:y){apos})[{A}]")
    # Addresses. Two patterns for one rule where the first way to match need not be the longest.
    add("[hH]", r"((?i:https?://)[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-])")
    add("[wW]", rf"((?i:www)\.(?:{host})+?[a-zA-Z]{{2,4}}{path})")
    add("[wW]", rf"((?i:www)\.(?:{host})+[a-zA-Z]{{2,4}})")
    add(anything, rf"((?:{bare_host})+?(?i:com|net|org|edu){path})", needs=".")
    add(anything, rf"((?:{bare_host})+(?i:com|net|org|edu))", needs=".")
    add(
        "[&<a-zA-Z0-9]",
        rf"((?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{{}}]*@(?:{mail}\.)*{mail}(?:(?i:&gt;)|>)?)",
        needs="@",
    )
    add("@", "(@[a-zA-Z_][a-zA-Z_0-9]*)")
    add("#", f"(#{letter}+)")
    add(any_apos, f"({possessive})[^A-Za-z]", _rewrite(_with_latex_quotes))
    add("[nN]", f"({negation})[^A-Za-z]", _rewrite(_with_latex_quotes))
    # Numbers.
    add(whole_number, f"([{D}]{{1,2}}[-/][{D}]{{1,2}}[-/][{D}]{{2,4}})")
    number_mark = "[.:,\u00ad\u066b\u066c]"
    add(f"[-+.:,\u00ad\u066b\u066c{D}]", f"([-+]?(?:[{D}]*+(?:{number_mark}[{D}]++)++|[{D}]++))", keep_clean)
    add(
        "[\u2070\u207a\u207b\u208a\u208b¹²³\u2074-\u2079\u2080-\u2089]",
        "([\u207a\u207b\u208a\u208b]?(?:[\u2070¹²³\u2074-\u2079]+|[\u2080-\u2089]+))",
    )
    add(
        whole_number,
        rf"((?:[{D}]{{1,4}}[- \u00a0])?[{D}]{{1,4}}(?:\\?/|\u2044)[{D}]{{1,4}})",
        _rewrite(_with_hard_spaces),
    )
    add("[¼-¾\u2153-\u215e]", "([¼-¾\u2153-\u215e])", _rewrite(_with_spelled_fractions))
    add(
        "[-cCpPaAsS]",
        rf"((?i:-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(?:&amp;|&)(?:P-500|Ls))|(?i:Cap){apos}(?i:n)"
        rf"|(?i:c){apos}(?i:est))",
        keep_amp,
    )
    add("[A-Za-z0-9]", rf"({slashed}(?:\\?/{slashed}){{1,2}})", needs="/")
    add(r"[A-Z$#]", r"([A-Z]*\$|#)")
    add(
        "[¢£¤¥\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
        "([¢£¤¥\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6])",
        _rewrite(_with_plain_currency),
    )
    # Abbreviations.
    add(
        "[A-Za-z]",
        rf"({initials}\.){space_or_line}++(?:{starts}|{markup}){space_or_line}",
        _acronym_before_sentence,
    )
    add("[a-zA-Z]", rf"((?:{_any_case(_BEFORE_NUMBERS)})\.){space_or_line}?[{D}]")
    add("[pPcC]", rf"((?:(?i:pt)[eyEY]|(?i:co))\.){space}(?i:ltd|lim)")
    add("[a-zA-Z]", rf"((?:{before_lower})\.){sentence_end}")
    add("[a-zA-Z]", rf"((?:{before_lower})\.)[\s\S][\s\S]")
    add("[a-zA-Z]", rf"((?:{before_lower})\.)")
    add("[a-zA-Z]", rf"({before_upper}\.)")
    add("[a-zA-Z]", rf"({before_upper}){space}")
    add("[a-zA-Z]", rf"({initials}){space_or_line}")
    add(any_apos, rf"({apos}[0-9][0-9]){space_or_line}")
    add(
        f"[{W}{D}&]",
        rf"((?:{letter}|[{D}])++(?:[.](?:{letter}|[{D}])+)*[.](?i:{extensions}))(?:{space_or_line}|[.?!,])",
    )
    add(any_letter, rf"({word}\.){clause_end}", keep_clean)
    # Telephone numbers, with and without their first group.
    phone = _rewrite(lambda text: _with_named_parentheses(_with_hard_spaces(text)))
    add(r"[(]", rf"(\([0-9]{{2,3}}\)[ \u00a0]?{phone_end})", phone)
    add(r"[+0-9]", rf"((?:\+\+?)?[0-9]{{2,4}}[- \u00a0][0-9]{{2,4}}[- \u00a0]{phone_end})", phone)
    add(r"[+0-9]", rf"((?:\+\+?)?[0-9]{{2,4}}[- \u00a0]{phone_end})", phone)
    add(r"[+0-9]", r"((?:\+\+?)?[0-9]{2,4}\.[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})", phone)
    add("[0-9]", r"([0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})", phone)
    # Quotes, brackets, faces.
    add('["&]', '("|(?i:&quot;))', _becomes("''"))
    add("\x7f", "(\x7f)", _drop)
    add("[<&]", "(<|(?i:&lt;))", _becomes("<"))
    add("[>&]", "(>|(?i:&gt;))", _becomes(">"))
    add("[<>:;=]", r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _rewrite(_with_named_parentheses))
    add(
        "[-^x=~<>'(]",
        r"([\^x=~<>]\.\[\^(?i:x)=[^<]*<>\]|[-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][_.]?[-\^x=~<>']\)"
        r"|\([\^x=~<>']-[\^x=~<>'`]\))",
        _rewrite(_with_named_parentheses),
    )
    for bracket, bracket_name in zip("{}[]()", ("LCB", "RCB", "LSB", "RSB", "LRB", "RRB"), strict=True):
        add(re.escape(bracket), f"({re.escape(bracket)})", _becomes(f"-{bracket_name}-"))
    # Punctuation.
    add("-", "(-+)", _dashes)
    add("[.\x85…]", "(\\.{3,5}|(?:\\.[ \u00a0]){2,4}\\.|[\x85…])", _becomes("..."))
    add("[@#_]", "(@+|#+|_+)")
    add(r"[*\\]", r"(\*+|(?:\\\*){1,3})")
    add(clause_end, f"({clause_end})")
    add("[?!]", "([?!]+)")
    stop = "[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002=/]"
    add(stop, f"({stop})")
    # Words with digits, hyphens, underscores.
    add("[A-Za-z0-9]", rf"({hyphenated}\.){clause_end}", keep_clean, needs="-")
    add("[A-Za-z0-9]", f"({hyphenated})", keep_clean, needs="-")
    add(f"[{A}{D}]", rf"({thing}\.){clause_end}")
    add(f"[{A}{D}]", f"({thing})")
    add("[A-Z]", rf"({company}\.){clause_end}", keep_amp)
    add("[A-Z]", f"({company})", keep_amp)
    add("'", "(')[A-Za-z][^ \t\n\r\u00a0]", _becomes("`"))
    add(any_apos, f"({possessive})", _rewrite(_with_latex_quotes))
    add("[nN]", f"({negation})", _rewrite(_with_latex_quotes))
    quotes = "[`‘’‚‛“”\x91-\x94„‟‹›«»]"
    add("['&`‘’‚‛“”\x91-\x94„‟‹›«»]", f"({quotes}{{2}}|''|{apos}|{quotes})", _rewrite(_with_latex_quotes))
    add("[<>]", "(<<|>>)")
    add(f"[{symbols}]", f"([{symbols}])")
    add("[\0\u00a0\u2000-\u200b\u200e\u200f\u3000\ufeff]", f"({space}+|[\0\u200b\u200e\u200f\ufeff])", _drop)
    add("&", "((?i:&nbsp;))", _drop)
    return tuple(rules)
