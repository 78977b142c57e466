/**
 * Throttling of Gradio's animation frames. Gradio's loading screen (6.31) keeps requesting animation frames after
 * it has been hidden, sixty per second on every open page. That takes processor time from the model, which may run
 * on the same machine. Once the viewer is ready, requests from Gradio's scripts are delayed by one second.
 *
 * This is not a module: it must run before Gradio's scripts, which store a reference to the function.
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
