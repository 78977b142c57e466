/**
 * Frames are for what moves. Gradio's loading screen (6.31) goes on asking for one after the other when it has
 * gone, sixty a second on every open page, and the model, which may share the processor with the browser, needs
 * the time. What Gradio's own scripts ask for once the viewer is there comes a second later.
 *
 * No module: it must be there before Gradio's scripts, which keep the function as they find it.
 */
{
  const request = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (draw) => {
    const ready = window.medsamViewer?.root.dataset.ready;
    if (!ready || !new Error().stack?.includes("/assets/")) return request(draw);
    setTimeout(request, 1000, draw);
    return 0;
  };
}
