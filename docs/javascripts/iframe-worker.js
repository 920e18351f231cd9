// Search runs in a Worker, and browsers start none for a page that was opened from the disk. There, a hidden frame runs
// the worker's script instead. On a server this file does nothing.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement('iframe');
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent('message', { data }));
      this.inside.importScripts = () => Promise.resolve();  // of other languages than English
      const script = this.inside.document.createElement('script');
      script.src = url;
      this.ready = new Promise((resolve) => { script.onload = resolve; });
      this.inside.document.body.appendChild(script);
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent('message', { data })));
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
