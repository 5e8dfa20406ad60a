// Token text. Everything in a payload is untrusted: it reaches the page only through textContent.

// Invisible characters, and bidirectional controls, which would reorder the text around them.
// Zero-width joiners and variation selectors are not included: they hold emoji together.
const INVISIBLE =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff]/;
const INVISIBLE_ALL = new RegExp(INVISIBLE.source, "g");

function symbolOf(char) {
  if (char === "\n") return "↵";
  if (char === "\t") return "⇥";
  const code = char.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code); // control pictures
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

// Fill a token's element. Its textContent is exactly `text`; CSS draws the symbols beside the characters.
function fillToken(span, text) {
  span.replaceChildren();
  span.classList.toggle("tv-void", text === "");
  if (!INVISIBLE.test(text)) {
    span.textContent = text;
    return;
  }
  let from = 0;
  for (const match of text.matchAll(INVISIBLE_ALL)) {
    if (match.index > from) span.append(text.slice(from, match.index));
    const symbol = document.createElement("span");
    symbol.className = "tv-symbol";
    symbol.dataset.symbol = symbolOf(match[0]);
    symbol.textContent = match[0];
    span.append(symbol);
    from = match.index + match[0].length;
  }
  if (from < text.length) span.append(text.slice(from));
}

// The token as one visible line, for the readout and for screen readers.
function visibleToken(text) {
  if (text === "") return "(part of the next character)";
  const shown = text.replace(INVISIBLE_ALL, symbolOf).replace(/ /g, "␣");
  return shown.length > 60 ? shown.slice(0, 59) + "…" : shown;
}

// A score as text: a true minus sign, two decimals, a dash if there is none.
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

// The score as a share of the scale, -1 to 1; 0 without a score.
function shareOf(score, scale) {
  return Math.min(Math.max((score || 0) / scale, -1), 1);
}

function labelled(text, control) {
  const label = make("label", "tv-choice");
  label.append(make("span", "", text), control);
  return label;
}

// As much of a text as fits into a width in the pen's font.
function fittedText(pen, text, width) {
  let shown = text;
  for (let end = text.length - 1; end > 0 && pen.measureText(shown).width > width; end--) {
    end = Math.min(end, Math.ceil((text.length * width) / pen.measureText(text).width));
    shown = text.slice(0, end) + "…";
  }
  return shown;
}
