"use strict";
const state = document.getElementById("state");
function connect() {
  const ws = new WebSocket(location.origin.replace(/^http/, "ws") + "/ws");
  ws.onopen = () => { state.textContent = "Live"; state.className = "card"; };
  ws.onmessage = (e) => {
    const t = JSON.parse(e.data);
    for (const k of ["waiting", "longest", "next", "seq"]) document.getElementById(k).textContent = t[k];
  };
  ws.onclose = () => {
    state.textContent = "The connection was cut at " + new Date().toLocaleTimeString() + ". Trying again every two seconds.";
    state.className = "card gone";
    setTimeout(connect, 2000);
  };
}
connect();
