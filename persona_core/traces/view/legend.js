// What the chart shows, in words.

// scene: {model, trait, choices}; chart: chartOf(scene); sinks: whether there are any
function legendOf({ model, trait, choices }, chart, sinks) {
  const some = chart.left_out ? ": " + trait + ", and any trait whose mean of " + SUSTAINED + " tokens rises above the grey band." : ", one per trait.";
  const parts = ["Lines" + some + " Unit: " + UNITS[choices.kind] + "."];
  if (choices.smooth > 1) parts.push("Mean of the last " + choices.smooth + " tokens.");
  else if (chart.window > 1) parts.push("The lines are smoothed: each point is the mean of the last " + chart.window + " tokens.");
  if (inDeviations(choices.kind)) parts.push("Grey band: ±2, where most tokens of neutral replies lie.");
  if (choices.kind === "raw") parts.push("Grey band: neutral mean ± 2 standard deviations of " + trait + ".");
  if (choices.kind === "cosine") parts.push("Zero is not neutral for cosines; it is for z.");
  parts.push("Dotted line: start of the reply, from which tokens are counted.");
  const onset = model.sides.some((side) => Number.isInteger(side.onsets?.[trait]?.onset));
  if (onset) parts.push("Tick and shaded band: where " + trait + " rises, with its interval.");
  if (chart.sides.some((side) => side.lines.some((line) => line.clipped.length))) parts.push("Triangle: a prompt or special token beyond the range.");
  const doubles = model.sides.some((side) => Number.isInteger(side.onsets?.[trait]?.doubles));
  if (doubles) parts.push((onset ? "Tick alone" : "Tick") + ": where " + trait + ", high at the first token, more than doubles.");
  if (sinks) parts.push("Hatched: sink tokens, whose state is far outside the usual range; they have no score.");
  return parts.join(" ");
}
