// How positions are told to readers: by the token of the reply, from 0, as onsets, findings, links and the API count; what is
// before it by the token of the prompt, from 0 as well. The code counts positions on the axis that both sides share.

const replyToken = (model, position) => position - model.start;

// The token of the prompt, of the first side whose prompt reaches that far back.
function promptToken(model, position) {
  const side = model.sides.find((one) => position >= one.shift);
  return position - (side?.shift ?? 0);
}

// "token 19" or "prompt token 7".
function positionText(model, position) {
  return position < model.start ? "prompt token " + promptToken(model, position) : "token " + replyToken(model, position);
}

// "tokens 3 to 8", "prompt tokens 0 to 7" or, across the border, "prompt token 5 to token 8"; both ends included.
function rangeText(model, from, to) {
  if (to < model.start) return "prompt tokens " + promptToken(model, from) + " to " + promptToken(model, to);
  if (from >= model.start) return "tokens " + replyToken(model, from) + " to " + replyToken(model, to);
  return positionText(model, from) + " to " + positionText(model, to);
}

const capitalized = (text) => text[0].toUpperCase() + text.slice(1);
