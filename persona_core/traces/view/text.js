// Token text. Everything that comes from a payload is hostile: it reaches the page through textContent alone.

// Characters that show nothing by themselves, or that would turn the text around them (bidirectional controls).
// Zero-width joiners and variation selectors are left alone: they hold emoji together.
const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff]/;
const UNSEEN_ALL = new RegExp(UNSEEN.source, "g");

function markOf(char) {
  if (char === "\n") return "↵";
  if (char === "\t") return "⇥";
  const code = char.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code); // control pictures
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

// Fill a token's element. Its textContent stays exactly `text`; the marks are drawn by CSS beside the characters.
function fillToken(span, text) {
  span.replaceChildren();
  span.classList.toggle("tv-void", text === "");
  if (!UNSEEN.test(text)) {
    span.textContent = text;
    return;
  }
  let from = 0;
  for (const match of text.matchAll(UNSEEN_ALL)) {
    if (match.index > from) span.append(text.slice(from, match.index));
    const mark = document.createElement("span");
    mark.className = "tv-mark";
    mark.dataset.mark = markOf(match[0]);
    mark.textContent = match[0];
    span.append(mark);
    from = match.index + match[0].length;
  }
  if (from < text.length) span.append(text.slice(from));
}

// The token as one visible line, for the readout and for screen readers.
function visibleToken(text) {
  if (text === "") return "(part of the next character)";
  const shown = text.replace(UNSEEN_ALL, markOf).replace(/ /g, "␣");
  return shown.length > 60 ? shown.slice(0, 59) + "…" : shown;
}

// A score as text: a true minus sign, two decimals, a dash where there is none.
function scoreText(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const digits = Math.abs(value) >= 100 ? 0 : 2;
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "−" : "+") + text;
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// A share of the scale, -1 to 1; 0 where there is no score.
function shareOf(score, scale) {
  return Math.min(Math.max((score || 0) / scale, -1), 1);
}

function labelled(text, control) {
  const label = make("label", "tv-choice");
  label.append(make("span", "", text), control);
  return label;
}
