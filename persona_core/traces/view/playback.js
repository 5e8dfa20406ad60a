// The play button: moves the cursor one token at a time.

const PLAY_PAUSE = 90; // ms per token

// hooks: ready() whether there is a trace, begin() before the first step, step() moves on and returns whether it could
function makePlayback(button, { ready, begin, step }) {
  let timer = null;

  function setPlaying(playing) {
    button.setAttribute("aria-pressed", String(playing));
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    setPlaying(false);
  }

  button.addEventListener("click", () => {
    if (!ready()) return;
    if (timer !== null) return stop();
    begin();
    setPlaying(true);
    timer = setInterval(() => step() || stop(), PLAY_PAUSE);
  });

  return { stop, playing: () => timer !== null };
}
