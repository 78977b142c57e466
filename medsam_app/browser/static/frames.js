/**
 * Frames are for what moves. Gradio's loading screen (6.31) goes on asking for one after the other when it has
 * gone, sixty a second on every open page; the model, which may share the processor with the browser, is in need
 * of the time.
 */

const PAUSE = 1000; // ms

/** What Gradio's own scripts ask for is drawn a second later from now on. */
export function slowGradio() {
  const request = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (draw) => {
    if (!new Error().stack?.includes("/assets/")) return request(draw);
    setTimeout(request, PAUSE, draw);
    return 0;
  };
}
